//! From a config to a running driver: transports, control connection, engine.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use phalanx_core::engine::Engine;
use phalanx_core::ids::{DomainId, MemberId, Rank};
use phalanx_core::view::MemberInfo;

use super::Error;
use crate::config::{Config, DomainChoice, TransportChoice};
use crate::control::client::{Client, ClientConfig};
use crate::driver::{Driver, Executor, FIRST_TRANSPORT_TOKEN, Parts};
use crate::sync::Doorbell;
use crate::transport::mux::{Mux, Reach};
use crate::transport::shm::{ShmTransport, TOKENS, prove_key};
use crate::transport::tcp::{TcpConfig, TcpTransport};

/// Starts everything a member needs.
pub(super) fn start(config: Config) -> Result<Arc<Driver>, Error> {
    let join = |what: &'static str| move |e: std::io::Error| Error::Join(format!("{what}: {e}"));
    if let Some(parent) = config.parent {
        crate::launch::tie_to_parent(parent).map_err(|e| Error::Join(e.to_string()))?;
    }
    let me = random_member()?;
    let host = crate::launch::host_id();
    let started = Instant::now();
    let poll = mio::Poll::new().map_err(join("no epoll"))?;
    let registry = || poll.registry().try_clone().map_err(join("no second handle on epoll"));
    let mut mux = Mux::new(host);
    let (mut shm_name, mut tcp_address) = (None, None);
    if config.transport != TransportChoice::Tcp {
        let prove = prove_key(config.key.clone(), me);
        let shm = ShmTransport::new(me, host, prove, registry()?, FIRST_TRANSPORT_TOKEN)
            .map_err(join("no Unix socket for shared memory"))?;
        shm_name = Some(shm.address());
        mux = mux.with(Reach::Host, Box::new(shm));
    }
    if config.transport != TransportChoice::Shm {
        let tcp_config = TcpConfig {
            me,
            key: config.key.clone(),
            bind: config.bind.unwrap_or_else(|| local_address(&config.coordinator)),
            ports: config.ports.clone(),
            interface: config.interface.clone(),
        };
        let tcp = TcpTransport::new(tcp_config, &registry()?, FIRST_TRANSPORT_TOKEN + TOKENS)
            .map_err(|e| Error::Join(e.to_string()))?;
        tcp_address = Some(tcp.address());
        mux = mux.with(Reach::Network, Box::new(tcp));
    }
    let domain = match config.domain {
        DomainChoice::Rank => DomainId(me.0),
        DomainChoice::Host => DomainId(host),
    };
    let info = MemberInfo {
        member: me,
        host,
        domain,
        tcp: tcp_address,
        shm: shm_name,
        pid: config.parent.map_or_else(std::process::id, crate::launch::child_of),
        wants: config.rank.map(Rank),
    };
    let engine = Engine::new(info, 0);
    let bell = Arc::new(Doorbell::new().map_err(join("no doorbell"))?);
    let waker = Arc::clone(&bell);
    let (inbox, control) = mpsc::channel();
    let client_config = ClientConfig { coordinator: config.coordinator, key: config.key, me };
    let client = Client::start(client_config, inbox, Box::new(move || waker.ring()))
        .map_err(|e| Error::Join(e.to_string()))?;
    let parts = Parts { executor: Executor::new(engine, mux), poll, control, client, bell, started };
    Driver::start(parts).map_err(join("no driver thread"))
}

fn random_member() -> Result<MemberId, Error> {
    let mut raw = [0; 8];
    getrandom::fill(&mut raw).map_err(|e| Error::Join(format!("no random bytes for a member id: {e}")))?;
    // 0 is the coordinator's.
    Ok(MemberId(u64::from_le_bytes(raw).max(1)))
}

/// The address by which this host reaches the coordinator: peers that reach it too can reach this one.
fn local_address(coordinator: &str) -> IpAddr {
    let route = || {
        let target = coordinator.to_socket_addrs().ok()?.next()?;
        let any: IpAddr = if target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let probe = UdpSocket::bind((any, 0)).ok()?;
        // Connecting a datagram socket sends nothing; it only chooses the route.
        probe.connect(target).ok()?;
        probe.local_addr().ok().map(|a| a.ip())
    };
    route().unwrap_or(Ipv4Addr::LOCALHOST.into())
}
