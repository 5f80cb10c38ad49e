# Targets that must always work: run, test, test-matrix, test-faults, test-soak, test-cache, check, gen, gen-check, bench,
# bench-memory.

LANGUAGES := rust go python typescript java
BUF := 1.75.0
GRPCURL := 1.9.3
TYPOS := 1.52.0
CARGO_DENY := 0.20.2

.PHONY: run test test-matrix test-faults test-soak test-cache check deny tools gen gen-check bench bench-memory install

# Starts the service on a private Redis and prints example commands.
run: install
	cargo build --release
	@scripts/run.sh target/release/sessiond $(ARGS)

# Runs the tests of every language and prints a table of their times.
test: install
	@scripts/test.sh $(LANGUAGES)

# Runs the Rust tests against every supported Redis version and prints a table. ARGS are passed to the tests.
test-matrix: install
	@scripts/servers.sh $(ARGS)

# Records HISTORIES histories under every fault, validates them, and writes the table of docs/faults.md. SEED=<seed>
# replays one history and writes nothing. FAULTS=<name,name> plays only these faults, FAULTS=<-name,-name> all others; then
# nothing is written.
HISTORIES ?= 336
test-faults: install
	cargo build
	cargo run -p sessiond-robustness -- histories $(if $(SEED),--seed=$(SEED),--histories=$(HISTORIES)) \
		$(if $(FAULTS),--faults='$(FAULTS)')

# Plays faults of ordinary operation for SOAK_MINUTES on the same servers, checks that nothing is lost and that every
# instance stays flat, and writes the section "Soak" of docs/faults.md. SEED=<seed> plays the faults of that seed.
# FAULTS=<name,name> plays only these faults, FAULTS=<-name,-name> all others; then nothing is written.
SOAK_MINUTES ?= 15
test-soak: install
	cargo build
	cargo run -p sessiond-robustness -- soak --minutes=$(SOAK_MINUTES) $(if $(SEED),--seed=$(SEED)) \
		$(if $(FAULTS),--faults='$(FAULTS)')

# Plays long histories of reads from the memory of the servers under faults, and checks every answer. SEED=<seed> replays one.
NEAR_CACHE_HISTORIES ?= 12
test-cache: install
	cargo build
	cargo run -p sessiond-robustness -- near-cache \
		$(if $(SEED),--histories=1 --seed=$(SEED),--histories=$(NEAR_CACHE_HISTORIES))

# Checks format, lints, spelling, Lua scripts, and the proto files: their style, and that the API did not change.
check: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.tools/venv/bin/typos
	scripts/luacheck.sh
	.tools/node_modules/.bin/buf lint
	.tools/node_modules/.bin/buf breaking --against proto/baseline.binpb

# Checks licences, banned crates and sources of all dependencies.
deny: .tools/cargo-deny-$(CARGO_DENY)
	.tools/bin/cargo-deny --workspace check licenses bans sources

# Installs Redis if it is missing.
install:
	@scripts/install.sh redis-server redis-server valkey-server

# Installs luacheck if it is missing, and grpcurl, buf and typos into .tools.
tools: .tools/grpcurl-$(GRPCURL) .tools/buf-$(BUF) .tools/typos-$(TYPOS)
	@scripts/install.sh lua-check luacheck

.tools/grpcurl-$(GRPCURL):
	GOBIN=$(CURDIR)/.tools go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v$(GRPCURL)
	touch $@

.tools/buf-$(BUF):
	npm install --silent --no-package-lock --prefix .tools @bufbuild/buf@$(BUF)
	touch $@

.tools/typos-$(TYPOS):
	python3 -m venv .tools/venv
	.tools/venv/bin/pip install --quiet --disable-pip-version-check typos==$(TYPOS)
	touch $@

.tools/cargo-deny-$(CARGO_DENY):
	cargo install --quiet --locked cargo-deny@$(CARGO_DENY) --root .tools
	touch $@

# Generates the stubs of every client that commits them.
gen:
	@for language in $(LANGUAGES); do echo "gen $$language"; $(MAKE) -s -C clients/$$language gen || exit 1; done

# Fails if the committed stubs differ from what the proto files generate.
gen-check: gen
	@git diff --exit-code --stat -- clients && test -z "$$(git status --porcelain -- clients)" \
		|| { echo "stubs in clients/ are stale; run 'make gen' and commit the result"; exit 1; }

# Prints the tables of docs/benchmarks.md.
bench: install
	cargo bench --bench calls
	cargo bench --bench cache
	cargo bench --bench scripts
	cargo bench --bench expiry
	cargo bench --bench snapshot
	cargo bench --bench watch
	cargo bench --bench hang
	cargo bench --bench wrong_tokens
	cargo bench --bench network

# Prints the memory tables of docs/benchmarks.md.
bench-memory: install
	cargo bench --bench memory
