//! A host's certificates: how an agent comes by them, and makes them anew while it goes on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent::clock::Clock;
use agent::config::HostDir;
use agent::{Config, JoinToken, pki};
use jiff::SignedDuration;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_outlives_its_certificate_without_a_restart() {
    let world = World::with_certificates_for(SignedDuration::from_secs(20)).await;
    let token = world.run("host token --name h1").await.ok();
    let dir = HostDir(world.path("host"));
    let config = config(&world, &dir, token);
    pki::join(&config, &dir).await.unwrap();
    let tls = pki::Tls::load(&config, &dir).unwrap();
    let client = pki::http_client(tls.to_servers.clone(), None).unwrap();
    let certificate = || std::fs::read(dir.pki().join("agent-cert.pem")).unwrap();
    let first = certificate();
    let renewing = tokio::spawn(pki::renew(
        client.clone(),
        config.server.clone(),
        dir.clone(),
        tls.own.clone(),
        Clock::start(),
    ));
    let url = format!("{}/agent/v1/document", config.server);
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(25) {
        // A connection that was kept may show a certificate of long ago once: the next one is a new one.
        let kept = client.get(&url).send().await.unwrap().status();
        refused += usize::from(!kept.is_success());
        let fresh = pki::http_client(tls.to_servers.clone(), None).unwrap();
        let fresh = fresh.get(&url).send().await.unwrap().status();
        assert!(fresh.is_success(), "{fresh} after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(refused <= 5, "{refused} times refused");
    assert_ne!(certificate(), first);
    renewing.abort();
}

/// On a machine without an id nobody can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_joins_twice_is_told_what_to_do() {
    if agent::machine::id().is_none() {
        eprintln!("skipped: this machine has no /etc/machine-id");
        return;
    }
    let world = World::new().await;
    let dir = HostDir(world.path("host"));
    let ask = async |name: &str| {
        let token = world.run(&format!("host token --name {name}")).await.ok();
        let answer = pki::join(&config(&world, &dir, token), &dir).await;
        answer.map_err(|error| error.to_string())
    };
    assert_eq!(ask("h1").await.unwrap().name, "h1");
    // Its keys are there: it is the same host, and asks nobody.
    assert_eq!(ask("h2").await.unwrap().name, "h1");
    // A copy of its disk that was told to forget them, and itself without them.
    std::fs::remove_dir_all(&dir.0).unwrap();
    let copy = ask("h2").await.unwrap_err();
    assert!(
        copy.contains("host h1") && copy.contains("systemd-machine-id-setup"),
        "{copy}"
    );
    let lost = ask("h1").await.unwrap_err();
    assert!(lost.contains("sterna host confirm-dead h1"), "{lost}");
    world.run("host remove h1").await.ok();
    assert_eq!(ask("h2").await.unwrap().name, "h2");
}

fn config(world: &World, dir: &HostDir, token: String) -> Config {
    Config {
        data_dir: dir.0.clone(),
        server: world.url.clone(),
        server_ca: world.ca(),
        join_token: Some(JoinToken::Text(token)),
        name: None,
        peer_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        peer_advertise: None,
        underlay_address: Ipv4Addr::LOCALHOST.into(),
        reserved_mib: 0,
        migration_buffer: None,
        qemu_uids: 1_879_048_192..=1_879_113_727,
        unneeded_kept_for: Duration::from_secs(24 * 3600),
    }
}
