//! The quickstart of every client, on two servers: the same story in every language.

mod harness;

use harness::World;

const STORY: &str = r#"server A keeps the session of user 1
server B heard CREATED: user_id=1 cart=["item1","item2"]
server B reads: user_id=1 cart=["item1","item2"]
server B heard ENDED: LOGOUT
server A answers: NOT_FOUND
done
"#;

/// What `make quickstart` of a client prints.
async fn tell(language: &str) {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let told = tokio::process::Command::new("make")
        .args(["-s", "-C", &format!("{}/clients/{language}", env!("CARGO_MANIFEST_DIR")), "quickstart"])
        .env("SESSIOND_A", &a.address)
        .env("SESSIOND_B", &b.address)
        .output()
        .await
        .unwrap();
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{language}: {errors}");
    assert_eq!(String::from_utf8_lossy(&told.stdout), STORY, "{language}: {errors}");
}

macro_rules! quickstarts {
    ($($name:ident: $language:literal),*) => {
        $(#[tokio::test]
        async fn $name() {
            tell($language).await;
        })*
    };
}

quickstarts! {
    the_rust_quickstart_tells_the_story: "rust",
    the_go_quickstart_tells_the_story: "go",
    the_python_quickstart_tells_the_story: "python",
    the_typescript_quickstart_tells_the_story: "typescript",
    the_java_quickstart_tells_the_story: "java"
}
