//! Choosing objects, printing them, finding them again.

use tokio::io::{AsyncBufReadExt, BufReader};

use super::world::{World, ended};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_choose_what_is_acted_on() {
    let world = World::new().await;
    for (name, label) in [("a", "app=web"), ("b", "app=web"), ("c", "app=db")] {
        world
            .run(&format!(
                "vm create {name} --template small --hold --label {label}"
            ))
            .await
            .ok();
    }
    let rehearsed = world.run("vm delete -l app=web --dry-run").await.ok();
    assert_eq!(rehearsed, "vm/a would be deleted\nvm/b would be deleted\n");
    let rehearsed = world
        .run("vm release --dry-run -l app=web -o jsonpath=$.items[*].name")
        .await
        .ok();
    assert_eq!(rehearsed, "a\nb\n");
    assert_eq!(
        world
            .run("vm list -o jsonpath=$.items[*].status.phase")
            .await
            .ok(),
        "Hold\nHold\nHold\n"
    );
    assert_eq!(
        world.run("vm release -l app=web -o name").await.ok(),
        "vm/a\nvm/b\n"
    );
    world.run("vm delete -l app=web").await.ok();
    world.run("vm release").await.refused(2, &["NAME"]);
    world
        .run("vm release c -l app=db")
        .await
        .refused(2, &["cannot be used with"]);
    world
        .run("vm release -l app=nothing")
        .await
        .refused(1, &["no vm carries app=nothing", "vm list"]);
    assert_eq!(world.run("vm list -l app=db -o name").await.ok(), "vm/c\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_forms_are_listed_when_they_are_asked_for() {
    let world = World::new().await;
    world.run("vm create a --template small --hold").await.ok();
    world.write(
        "form.yaml",
        "kind: vm\nname: small-warm-1\nspec: {warms: small}\n",
    );
    world.run("apply -f form.yaml").await.ok();
    let list = async |words: &str| world.run(&format!("vm list {words} -o name")).await.ok();
    assert_eq!(list("").await, "vm/a\n");
    assert_eq!(list("--all").await, "vm/a\nvm/small-warm-1\n");
    assert_eq!(list("--filter spec.warms=small").await, "vm/small-warm-1\n");
    assert_eq!(list("--filter spec.vcpus>=1").await, "vm/a\nvm/small-warm-1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_kept_warm_until_it_is_not() {
    let world = World::new().await;
    let shown = async || {
        let json = world.run("template get small -o json").await.ok();
        let template: serde_json::Value = serde_json::from_str(&json).unwrap();
        (template["spec"]["keep_warm"].clone(), template["status"].clone())
    };
    for _ in 0..2 {
        world.run("template warm small").await.ok();
        let (keep, status) = shown().await;
        assert_eq!(
            (&keep["datastore"], &status["version"]),
            (&"default".into(), &1.into())
        );
        // The controller may have begun already.
        let state = status["warm"]["state"].as_str().unwrap();
        assert!(["due", "making"].contains(&state), "{status}");
    }
    world
        .run("template warm small --off --wait")
        .await
        .refused(2, &["cannot be used with"]);
    world.run("template warm small --off").await.ok();
    let (keep, status) = shown().await;
    assert!(keep.is_null() && status["warm"].is_null(), "{keep} {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_names_all_are_tried_and_each_failure_is_named() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world
            .run(&format!("template create {name} --image disk --memory 64MiB"))
            .await
            .ok();
    }
    let said = world.run("template delete a smal b").await;
    assert_eq!(said.out, "template/a deleted\ntemplate/b deleted\n");
    said.refused(1, &["\"smal\"", "did you mean \"small\"?"]);
    world
        .run("template get smll")
        .await
        .refused(1, &["did you mean \"small\"?"]);
    world
        .run("vm create web --template smal")
        .await
        .refused(1, &["did you mean \"small\"?"]);
    world
        .run("template get zzz")
        .await
        .refused(1, &["there is no template \"zzz\": `sterna template list`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_are_created_at_once() {
    let world = World::new().await;
    world.run("vm create a b --template small -l app=web").await.ok();
    assert_eq!(world.run("vm list -l app=web -o name").await.ok(), "vm/a\nvm/b\n");
    let batches = world
        .run("vm list -o jsonpath=$.items[*].spec.placement.batch.size")
        .await
        .ok();
    assert_eq!(batches, "2\n2\n", "they are placed together");
    let both = "vm create a b --template small --count 2";
    world
        .run(both)
        .await
        .refused(1, &["give one, or leave --count out"]);
    let named = "vm create c d --template small --hostname web";
    world.run(named).await.refused(1, &["--hostname is for one VM"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_of_output() {
    let world = World::new().await;
    world
        .run("template create big --image disk --memory 1GiB --label size=big")
        .await
        .ok();
    let path = world
        .run("template list -o jsonpath={.items[*].spec.memory_mib}")
        .await
        .ok();
    assert_eq!(path, "1024\n64\n");
    assert_eq!(
        world.run("template get big -o jsonpath=$.name").await.ok(),
        "big\n"
    );
    let wide = world.run("template list -o wide").await.ok();
    let titles = wide
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>();
    assert_eq!(
        titles,
        [
            "NAME", "IMAGE", "VERSION", "PROFILE", "VCPUS", "MEMORY", "NETWORKS", "WARM", "LABELS", "OWNER",
            "REVISION", "ID"
        ]
    );
    assert!(wide.contains("size=big"), "{wide}");
    assert!(!wide.contains('\u{1b}'), "colours go to terminals only: {wide:?}");
    world
        .run("template list -o jsn")
        .await
        .refused(2, &["give one of table, wide, json"]);
    world
        .run("template list -o jsonpath=$.items[")
        .await
        .refused(2, &["give a path like"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_list_that_nobody_sees_prints_changes() {
    let world = World::new().await;
    for line in ["template list --watch -o json", "template list --watch"] {
        let mut child = world.command(line).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = String::new();
        while !seen.contains("small") {
            seen = lines.next_line().await.unwrap().unwrap();
        }
        assert!(seen.contains("added") && !seen.contains('\u{1b}'), "{seen:?}");
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_is_offered_commands_and_names() {
    let world = World::new().await;
    let complete = async |words: &[&str]| {
        let mut command = world.command("--");
        command.args(words).env("STERNA_COMPLETE", "bash");
        command
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
            .env("_CLAP_IFS", "\n");
        ended(command).await.ok()
    };
    assert_eq!(complete(&["sterna", "template", "get", "sm"]).await, "small");
    assert_eq!(
        complete(&["sterna", "vm", "create", "x", "--template", ""]).await,
        "small"
    );
    assert_eq!(complete(&["sterna", "vm", "list", "-o", "na"]).await, "name");
    assert!(complete(&["sterna", "vm", "sus"]).await.contains("suspend"));
    let script = world.run("completion bash").await.ok();
    assert!(script.contains("STERNA_COMPLETE"), "{script}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_says_who_changed_what() {
    let world = World::new().await;
    world
        .run("template create web --image disk --memory 64MiB")
        .await
        .ok();
    world.write(
        "web.yaml",
        "kind: template\nname: web\nspec: {image: disk, memory_mib: 128}\n",
    );
    world.run("apply -f web.yaml").await.ok();
    world.run("template delete web").await.ok();
    let table = world.run("template history web").await.ok();
    let rows: Vec<String> = table
        .lines()
        .skip(1)
        .map(|row| row.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        rows,
        [
            "user:admin create template web object: created",
            "user:admin change template web spec.memory_mib: 64 → 128",
            "- → 2",
            "user:admin delete template web object: removed",
        ]
    );
    let path = world
        .run("template history web -o jsonpath=$.items[1].changes[0].after")
        .await
        .ok();
    assert_eq!(path, "128\n");
    world
        .run("template history wob")
        .await
        .refused(1, &["there is no template \"wob\""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_filtered_and_sorted() {
    let world = World::new().await;
    for (name, memory) in [("b", "128MiB"), ("a", "1GiB"), ("c", "1GiB")] {
        world
            .run(&format!("template create {name} --image disk --memory {memory}"))
            .await
            .ok();
    }
    let listed = async |options: &str| {
        let said = world.run(&format!("template list -o name {options}")).await.ok();
        said.replace("template/", "").replace('\n', " ")
    };
    // The API lists in the order of their making, and people look for names.
    assert_eq!(listed("").await, "a b c small ");
    assert_eq!(listed("--sort created_at").await, "small b a c ");
    assert_eq!(listed("--sort name").await, "a b c small ");
    assert_eq!(listed("--sort -spec.memory_mib,-name").await, "c a b small ");
    assert_eq!(
        listed("--sort=-name --filter spec.memory_mib>100").await,
        "c b a "
    );
    assert_eq!(
        listed("--filter spec.memory_mib>100 --filter name!=a,name!=c").await,
        "b "
    );
    world
        .run("vm list --filter status.phse=running")
        .await
        .refused(1, &["\"status.phse\"", "phase"]);
    world
        .run("vm list --sort age")
        .await
        .refused(1, &["\"age\"", "created_at"]);
    let help = world.run("vm list --help").await.ok();
    assert!(
        help.contains("--filter 'status.phase=running,status.host=h1' --sort name"),
        "{help}"
    );
    let mut child = world
        .command("template list --watch --filter name=a -o json")
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    assert!(first.contains("\"name\":\"a\""), "{first}");
    child.kill().await.unwrap();
}
