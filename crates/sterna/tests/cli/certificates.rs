//! A host's certificates, made anew by its agent while it goes on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use agent::config::HostDir;
use agent::{Config, JoinToken, pki};
use jiff::SignedDuration;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_outlives_its_certificate_without_a_restart() {
    let world = World::with_certificates_for(SignedDuration::from_secs(20)).await;
    let token = world.run("host token --name h1").await.ok();
    let dir = HostDir(world.path("host"));
    let config = Config {
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
    };
    pki::join(&config, &dir).await.unwrap();
    let tls = pki::Tls::load(&config, &dir).unwrap();
    let client = pki::http_client(tls.to_servers.clone()).unwrap();
    let certificate = || std::fs::read(dir.pki().join("agent-cert.pem")).unwrap();
    let first = certificate();
    let renewing = tokio::spawn(pki::renew(
        client.clone(),
        config.server.clone(),
        dir.clone(),
        tls.own.clone(),
    ));
    let url = format!("{}/agent/v1/document", config.server);
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(25) {
        // A connection that was kept may show a certificate of long ago once: the next one is a new one.
        let kept = client.get(&url).send().await.unwrap().status();
        refused += usize::from(!kept.is_success());
        let fresh = pki::http_client(tls.to_servers.clone()).unwrap();
        let fresh = fresh.get(&url).send().await.unwrap().status();
        assert!(fresh.is_success(), "{fresh} after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(refused <= 5, "{refused} times refused");
    assert_ne!(certificate(), first);
    renewing.abort();
}
