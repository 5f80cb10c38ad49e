# What must always hold: make run, make test, make test-matrix, make test-faults, make gen, make gen-check, make bench, make bench-memory.

LANGUAGES := rust go python typescript java
BUF := 1.75.0
GRPCURL := 1.9.3

.PHONY: run test test-matrix test-faults check tools gen gen-check bench bench-memory install

# Starts the service on its own private Redis, and says what to type next.
run: install
	cargo build --release
	@scripts/run.sh target/release/sessiond $(ARGS)

# The tests of every language, and a table of their times.
test: install
	@scripts/test.sh $(LANGUAGES)

# The Rust tests against every kind of Redis that is served, and a table. ARGS go to the tests.
test-matrix: install
	@scripts/servers.sh $(ARGS)

# Recorded histories with every fault, held against the contract; writes their table into docs/faults.md. HISTORIES=<n>.
HISTORIES ?= 240
test-faults: install
	HISTORIES=$(HISTORIES) cargo test --test robustness -- --nocapture

# Format, lints, and the style of the proto files.
check: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.tools/node_modules/.bin/buf lint

# Redis, if it is missing.
install:
	@scripts/install.sh

# grpcurl and buf, into .tools.
tools: .tools/grpcurl-$(GRPCURL) .tools/buf-$(BUF)

.tools/grpcurl-$(GRPCURL):
	GOBIN=$(CURDIR)/.tools go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v$(GRPCURL)
	touch $@

.tools/buf-$(BUF):
	npm install --silent --no-package-lock --prefix .tools @bufbuild/buf@$(BUF)
	touch $@

# Regenerates the stubs of every client.
gen:
	@for language in $(LANGUAGES); do echo "gen $$language"; $(MAKE) -s -C clients/$$language gen || exit 1; done

# Fails if the committed stubs are not what the proto files give.
gen-check: gen
	@git diff --exit-code --stat -- clients && test -z "$$(git status --porcelain -- clients)" \
		|| { echo "The stubs in clients/ are stale: run 'make gen' and commit what it changes."; exit 1; }

# The tables of docs/benchmarks.md.
bench: install
	cargo bench --bench calls
	cargo bench --bench expiry
	cargo bench --bench snapshot
	cargo bench --bench hang

# The section on memory in docs/benchmarks.md.
bench-memory: install
	cargo bench --bench memory
