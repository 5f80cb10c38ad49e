//! The server's flags and their environment.

use clap::Parser;

/// Every flag is also a key of the TOML file, with `_` for `-`.
#[derive(Parser)]
pub struct Flags {
    /// Address and port to serve gRPC on; port 0 picks one [default: 127.0.0.1:50051].
    #[arg(long, env = "SESSIOND_LISTEN")]
    listen: Option<String>,
    /// Address and port of /metrics, /healthz and /readyz [default: 127.0.0.1:9464].
    #[arg(long, env = "SESSIOND_METRICS_LISTEN")]
    metrics_listen: Option<String>,
    /// redis://[user:password@]host:port[/db], rediss:// by TLS, redis+unix:///path, redis-cluster://host:port or
    /// redis-sentinel://host:port?sentinelServiceName=NAME [default: a private one is started].
    #[arg(long, env = "SESSIOND_REDIS", hide_env_values = true)]
    redis: Option<String>,
    /// What the keys begin with, so that a Redis can be shared [default: sessiond:].
    #[arg(long, env = "SESSIOND_KEY_PREFIX")]
    key_prefix: Option<String>,
    /// Directory of the private Redis [default: sessiond-data].
    #[arg(long, env = "SESSIOND_DATA_DIR")]
    data_dir: Option<String>,
    /// TOML file.
    #[arg(long, env = "SESSIOND_CONFIG")]
    config: Option<String>,
    /// text or json [default: text].
    #[arg(long, env = "SESSIOND_LOG_FORMAT")]
    log_format: Option<String>,
    /// error, warn, info, debug, trace, or directives such as sessiond=debug [default: info].
    #[arg(long, env = "SESSIOND_LOG_LEVEL")]
    log_level: Option<String>,
    /// Origins that gRPC-Web is served to, exact, with commas between; refused in this version [default: none].
    #[arg(long, env = "SESSIOND_GRPC_WEB_ORIGINS")]
    grpc_web_origins: Option<String>,
    /// How long calls under way may take when the server is stopped [default: 10s].
    #[arg(long, env = "SESSIOND_DRAIN_TIMEOUT")]
    drain_timeout: Option<String>,
    /// Serves other addresses than loopback without TLS.
    #[arg(long, env = "SESSIOND_INSECURE", num_args = 0..=1, default_missing_value = "true")]
    insecure: Option<String>,
    /// Takes a Redis that may evict keys: sessions may then end silently.
    #[arg(long, env = "SESSIOND_ALLOW_EVICTION", num_args = 0..=1, default_missing_value = "true")]
    allow_eviction: Option<String>,
    /// Of Redis; beats one in the URL.
    #[arg(env = "SESSIOND_REDIS_PASSWORD", long, hide = true, hide_env_values = true)]
    redis_password: Option<String>,
}

impl Flags {
    pub(super) fn redis_password(&self) -> Option<String> {
        self.redis_password.clone()
    }

    /// The file's table with the flags laid over it.
    pub(super) fn table(&self) -> Result<toml::Table, String> {
        let mut table = match &self.config {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("config: {path}: {error}"))?;
                text.parse().map_err(|error: toml::de::Error| format!("config: {path}: {error}"))?
            }
        };
        let given = [
            ("listen", &self.listen),
            ("metrics_listen", &self.metrics_listen),
            ("redis", &self.redis),
            ("key_prefix", &self.key_prefix),
            ("data_dir", &self.data_dir),
            ("log_format", &self.log_format),
            ("log_level", &self.log_level),
            ("grpc_web_origins", &self.grpc_web_origins),
            ("drain_timeout", &self.drain_timeout),
            ("insecure", &self.insecure),
            ("allow_eviction", &self.allow_eviction),
        ];
        for (key, text) in given {
            if let Some(text) = text {
                table.insert(key.to_owned(), text.clone().into());
            }
        }
        Ok(table)
    }
}
