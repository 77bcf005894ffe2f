//! Objects in files, there and back.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::world::World;

const CLOUD: &str = "\
# Order does not matter.
kind: vm
name: web
labels: { app: web }
spec:
  template: wide
  placement: { host_labels: { disk: ssd } }
  power: hold
---
kind: template
name: wide
spec:
  image: disk
  memory_mib: 128
  networks: [front]
---
kind: network
name: front
spec:
  cidr: 10.1.0.0/24
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_is_there_and_applying_it_again_changes_nothing() {
    let world = World::new().await;
    world.write("cloud.yaml", CLOUD);
    let rehearsed = world.run("apply -f cloud.yaml --dry-run").await.ok();
    assert!(
        rehearsed.ends_with("would create 3, would change 0, unchanged 0; nothing was done\n"),
        "{rehearsed}"
    );
    assert_eq!(world.run("vm list -o name").await.ok(), "");
    assert_eq!(
        world.run("apply -f cloud.yaml -o name").await.ok(),
        "network/front\ntemplate/wide\nvm/web\n"
    );
    assert_eq!(
        world.run("apply -f cloud.yaml").await.ok(),
        "network/front  unchanged\ntemplate/wide  unchanged\nvm/web  unchanged\ncreated 0, changed 0, unchanged 3\n"
    );
    world.write(
        "cloud.yaml",
        &CLOUD
            .replace("memory_mib: 128", "memory_mib: 256")
            .replace("disk: ssd", "disk: hdd"),
    );
    let changed = world.run("apply -f .").await.ok();
    for line in [
        "  -   memory_mib: 128",
        "  +   memory_mib: 256",
        "  +       disk: hdd",
    ] {
        assert!(
            changed.lines().any(|shown| shown == line),
            "{line:?} is not in\n{changed}"
        );
    }
    assert!(
        changed.ends_with("created 0, changed 2, unchanged 1\n"),
        "{changed}"
    );
    let json = world.run("apply -f cloud.yaml -o json").await.ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["items"][2]["outcome"], "unchanged", "{json:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_can_be_applied() {
    let world = World::new().await;
    world.write("cloud.yaml", CLOUD);
    world.run("apply -f cloud.yaml").await.ok();
    let exported = world.run("export").await.ok();
    let mut child = world.command("apply -f -").stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(exported.as_bytes())
        .await
        .unwrap();
    let said = child.wait_with_output().await.unwrap();
    let out = String::from_utf8(said.stdout).unwrap();
    assert!(
        out.ends_with("created 0, changed 0, unchanged 7\n"),
        "{out}\n{exported}"
    );
    world.run("vm delete web --wait").await.ok();
    world.run("template delete wide").await.ok();
    world.write("all.yaml", &exported);
    assert_eq!(
        world.run("apply -f all.yaml -o name").await.ok(),
        "template/wide\nvm/web\n"
    );
    assert_eq!(world.run("export vm -l app=web -o name").await.ok(), "vm/web\n");
    world
        .run("export event")
        .await
        .refused(2, &["give one of datastore, host"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_the_middle_applies_nothing_and_is_named_with_its_line() {
    let world = World::new().await;
    for (right, wrong, words) in [
        (
            "  memory_mib: 128",
            "  memori_mib: 128",
            &["cloud.yaml:14:", "memori_mib"][..],
        ),
        (
            "  image: disk",
            "  image: dsk",
            &["cloud.yaml:10:", "template/wide", "did you mean \"disk\""],
        ),
        (
            "  memory_mib: 128",
            "  memory_mib: 1",
            &["cloud.yaml:10:", "template/wide", "memory_mib"],
        ),
        ("kind: template", "kind: templat", &["cloud.yaml:10:", "templat"]),
        (
            "kind: network\nname: front",
            "kind: image\nname: front",
            &["cloud.yaml:20:", "cidr"],
        ),
        (
            "name: front\nspec:\n  cidr: 10.1.0.0/24",
            "name: front\nspec: {cidr: [}",
            &["cloud.yaml:19:"],
        ),
        (
            "kind: network",
            "---\nkind: network\nname: front\nspec: {cidr: 10.2.0.0/24}\n---\nkind: network",
            &["described at cloud.yaml:18"],
        ),
    ] {
        assert!(CLOUD.contains(right), "{right}");
        world.write("cloud.yaml", &CLOUD.replace(right, wrong));
        let said = world.run("apply -f cloud.yaml").await;
        assert_eq!(said.out, "", "{wrong}");
        said.refused(1, &[words, &["nothing was applied"]].concat());
        assert_eq!(
            world.run("network list -o name").await.ok(),
            "network/default\n",
            "{wrong}"
        );
    }
    world.run("apply").await.refused(2, &["--file"]);
    world
        .run("apply -f nowhere.yaml")
        .await
        .refused(1, &["nowhere.yaml"]);
    world.write("empty.yaml", "# nothing\n");
    world
        .run("apply -f empty.yaml")
        .await
        .refused(1, &["no document"]);
}
