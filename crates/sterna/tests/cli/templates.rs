//! Templates with their versions, and profiles.

use super::world::World;

/// The words of each line.
fn rows(table: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    table.lines().map(words).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn profiles_give_sizes_and_templates_have_versions() {
    let world = World::new().await;
    let family = world.run("profile list -l family=general").await.ok();
    assert_eq!(
        rows(&family),
        [
            "NAME VCPUS MEMORY DISK HOST LABELS DEFAULT",
            "2xlarge 8 32768 MiB yes",
            "4xlarge 16 65536 MiB yes",
            "large 2 8192 MiB yes",
            "medium 1 4096 MiB yes",
            "small 1 2048 MiB yes",
            "xlarge 4 16384 MiB yes",
        ]
    );
    let refused = world.run("profile delete large").await;
    refused.refused(1, &["default family", "`sterna profile create large`"]);
    let wide = "profile create wide --vcpus 3 --memory 96MiB --disk 4MiB --host-label disk=ssd";
    assert_eq!(
        rows(&world.run(wide).await.ok())[1],
        "wide 3 96 MiB 4 MiB disk=ssd"
    );
    world
        .run("template create web --image disk --profile wide")
        .await
        .ok();
    let from_profile = world.run("vm create a --image disk --profile wide -o jsonpath=$.spec.vcpus");
    assert_eq!(from_profile.await.ok(), "3\n");
    world
        .run("template create none --image disk")
        .await
        .refused(2, &["--memory"]);
    versions(&world).await;
    assert_eq!(world.run("export profile -o name").await.ok(), "profile/wide\n");
}

/// Of a template that is changed by a file.
async fn versions(world: &World) {
    world.write(
        "web.yaml",
        "kind: template\nname: web\nspec: {image: disk, profile: wide, vcpus: 4}\n",
    );
    world.run("apply -f web.yaml").await.ok();
    let again = world.run("apply -f web.yaml").await.ok();
    assert!(again.contains("unchanged 1"), "{again}");
    world.run("vm create b --template web@1").await.ok();
    let versions = world.run("template versions web").await.ok();
    let versions: Vec<String> = rows(&versions)
        .iter()
        .map(|row| {
            row.split(' ')
                .enumerate()
                .filter(|(n, _)| *n != 1)
                .map(|(_, word)| word)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(
        versions,
        [
            "VERSION BY FROM IMAGE PROFILE VCPUS MEMORY VMS",
            "2 admin disk wide 4 96 MiB 0",
            "1 admin disk wide 3 96 MiB 1",
        ]
    );
    let first = world.run("template get web@1 -o jsonpath=$.vcpus").await.ok();
    assert_eq!(first, "3\n");
    let whole = world.run("template delete web@1 web").await;
    whole.refused(1, &["web names a whole template"]);
    let refused = world.run("template delete web@2").await;
    refused.refused(1, &["is the newest"]);
    let deleted = world.run("template delete web@1").await.ok();
    assert_eq!(deleted, "template/web@1 deleted\n");
    assert_eq!(
        world.run("template versions web -o name").await.ok(),
        "template/web@2\n"
    );
}
