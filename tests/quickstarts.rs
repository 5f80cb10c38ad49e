//! The quickstart sample of every client, run against two servers: all print the same lines.

use harness::World;

const EXPECTED: &str = r#"server A created the session of user 1
server B received CREATED: user_id=1 cart=["item1","item2"]
server B read: user_id=1 cart=["item1","item2"]
server B received ENDED: LOGOUT
server A returned: NOT_FOUND
done
"#;

/// Runs `make quickstart` of a client and compares its output.
async fn run_quickstart(language: &str) {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let run = tokio::process::Command::new("make")
        .args(["-s", "-C", &format!("{}/clients/{language}", env!("CARGO_MANIFEST_DIR")), "quickstart"])
        .env("SESSIOND_A", &a.address)
        .env("SESSIOND_B", &b.address)
        .output()
        .await
        .unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{language}: {errors}");
    assert_eq!(String::from_utf8_lossy(&run.stdout), EXPECTED, "{language}: {errors}");
}

macro_rules! quickstarts {
    ($($name:ident: $language:literal),*) => {
        $(#[tokio::test]
        async fn $name() {
            run_quickstart($language).await;
        })*
    };
}

quickstarts! {
    rust_quickstart_prints_the_expected_lines: "rust",
    go_quickstart_prints_the_expected_lines: "go",
    python_quickstart_prints_the_expected_lines: "python",
    typescript_quickstart_prints_the_expected_lines: "typescript",
    java_quickstart_prints_the_expected_lines: "java"
}
