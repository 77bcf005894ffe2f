//! `sterna token` and `sterna support`.

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_made_listed_used_and_revoked() {
    let world = World::new().await;
    let secret = world
        .run("token create eyes --role reader --expires 30d")
        .await
        .ok();
    let secret = secret.trim();
    assert!(secret.starts_with("sterna-") && secret.len() == 71, "{secret}");
    let listed = world.run("token list").await.ok();
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "USER", "ROLE", "CREATED", "EXPIRES"]);
    assert_eq!(
        (&rows[1][..3], rows[1].len()),
        (&["eyes", "eyes", "reader"][..], 5)
    );
    assert_eq!(
        (&rows[2][..3], rows[2][4]),
        (&["first", "admin", "admin"][..], "-")
    );
    assert!(!listed.contains(secret));
    let with = format!("--token {secret}");
    world.run(&format!("{with} vm list")).await.ok();
    world
        .run(&format!("{with} network create front --cidr 10.1.0.0/24"))
        .await
        .refused(1, &["reader", "operator"]);
    world
        .run("token delete eyes none")
        .await
        .refused(1, &["no token \"none\""]);
    world
        .run(&format!("{with} vm list"))
        .await
        .refused(1, &["unknown or has expired"]);
    world
        .run("token create x --role king")
        .await
        .refused(2, &["reader", "operator", "admin"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_support_bundle_is_written_by_whoever_may_read() {
    let world = World::new().await;
    let secret = world.run("token create eyes --role reader").await.ok();
    world.write("agent.log", &format!("a line with {secret}"));
    let bundle = format!(
        "--token {} support bundle fault.tar.gz --logs agent.log",
        secret.trim()
    );
    world.run(&bundle).await.ok();
    world.run(&bundle).await.refused(1, &["exists", "--force"]);
    let unpack = std::process::Command::new("tar")
        .arg("-xzOf")
        .arg(world.path("fault.tar.gz"))
        .output();
    let text = String::from_utf8_lossy(&unpack.unwrap().stdout).into_owned();
    assert!(
        text.contains("a line with sterna-[removed]") && !text.contains(secret.trim()),
        "{text}"
    );
    assert!(text.contains("sterna_build_info"), "the metrics are not in it");
    // What is for administrators is missing, and said to be.
    assert!(text.contains("tokens.json: only an administrator"), "{text}");
}
