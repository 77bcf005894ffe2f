//! Named contexts in the user's file.

use super::world::{World, ended, set_mode};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_keeps_the_way_to_a_server() {
    let world = World::new().await;
    let bare = async |line: &str| ended(world.bare(line)).await;
    bare("template list").await.refused(
        1,
        &["STERNA_SERVER (--server)", "context set local --from DIR/env"],
    );
    let env = format!(
        "export STERNA_SERVER='{}'\nexport STERNA_TOKEN='{}'\nexport STERNA_CACERT='{}'\n",
        world.url,
        world.token,
        world.ca().display()
    );
    world.write("env", &env);
    assert!(
        bare("context set local --from env")
            .await
            .ok()
            .contains("used from now on")
    );
    assert_eq!(bare("template list -o name").await.ok(), "template/small\n");

    world.write("token", &world.token);
    set_mode(&world.path("token"), 0o600);
    let line = format!(
        "context set far --server {} --cacert server/ca.pem --token-file token",
        world.url
    );
    assert!(bare(&line).await.ok().contains("context use far"));
    assert_eq!(
        bare("template list -o name --context far").await.ok(),
        "template/small\n"
    );
    bare("template list --context nowhere")
        .await
        .refused(1, &["no context \"nowhere\""]);
    let listed = bare("context list").await.ok();
    assert!(!listed.contains(&world.token), "{listed}");
    assert_eq!(
        bare("context list -o jsonpath=$.items[?@.current==true].name")
            .await
            .ok(),
        "local\n"
    );
    bare("context use far").await.ok();
    set_mode(&world.path("token"), 0o644);
    bare("template list")
        .await
        .refused(1, &["token holds a token", "chmod 600"]);
    bare("context delete far").await.ok();
    bare("template list").await.refused(1, &["not set"]);
    let config = world.path(".config/sterna/config.yaml");
    set_mode(&config, 0o640);
    bare("template list --context local")
        .await
        .refused(1, &["config.yaml holds a token", "chmod 600"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_win_over_the_environment_and_that_over_the_context() {
    let world = World::new().await;
    world.write("wrong.pem", "no certificate");
    let line = "context set wrong --server https://127.0.0.1:1 --token t --cacert wrong.pem";
    ended(world.bare(line)).await.ok();
    // The environment says all, so the context that is current is not asked.
    assert_eq!(world.run("template list -o name").await.ok(), "template/small\n");
    // One that is named is used as it is, and the environment's token is not sent to its server.
    world.run("template list --context wrong").await.refused(1, &[]);
    let mut named = world.command("template list");
    named.env("STERNA_CONTEXT", "wrong");
    assert_eq!(
        ended(named).await.code,
        0,
        "the environment's server wins over its context"
    );
    world
        .run("template list --server https://127.0.0.1:1")
        .await
        .refused(1, &["127.0.0.1:1"]);
    let mut option = world.bare("template list -o name --context wrong");
    option
        .args(["--server", &world.url, "--token", &world.token, "--cacert"])
        .arg(world.ca());
    assert_eq!(ended(option).await.ok(), "template/small\n");
}
