//! Where a member listens: from an address or the name of an interface, and a range of ports.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use mio::net::TcpListener;

/// Why no data listener could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// No interface of this name with an address of the wanted family.
    #[error("no interface {name} with an address like {family}; this host has: {able}")]
    NoInterface {
        /// The name asked for.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Interfaces and addresses that are there.
        able: String,
    },
    /// Every port of the range is taken or forbidden.
    #[error("cannot listen on {address}, ports {first} to {last}; choose a wider range or another address")]
    NoPort {
        /// The local address.
        address: IpAddr,
        /// First port tried.
        first: u16,
        /// Last port tried.
        last: u16,
        /// What the system said to the last one.
        #[source]
        source: std::io::Error,
    },
    /// The readiness queue could not be made.
    #[error("the system gives no readiness queue; is the limit on open files too low?")]
    NoQueue(#[source] std::io::Error),
    /// The list of interfaces could not be read.
    #[error("cannot list the network interfaces of this host")]
    NoList(#[source] std::io::Error),
}

/// The address of `interface` of the family of `bind`, or `bind` itself.
pub fn local_address(bind: IpAddr, interface: Option<&str>) -> Result<IpAddr, ListenError> {
    let Some(name) = interface else {
        return Ok(bind);
    };
    let found = if_addrs::get_if_addrs().map_err(ListenError::NoList)?;
    let usable = |ip: IpAddr| ip.is_ipv4() == bind.is_ipv4() && !is_link_local(ip);
    found.iter().find(|i| i.name == name && usable(i.ip())).map(if_addrs::Interface::ip).ok_or_else(|| {
        let able: Vec<String> = found.iter().map(|i| format!("{} {}", i.name, i.ip())).collect();
        let family = if bind.is_ipv4() { "IPv4" } else { "IPv6" };
        ListenError::NoInterface { name: name.to_owned(), family, able: able.join(", ") }
    })
}

/// Such an address means nothing on another host without the other host's own scope number.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// A listener on the first free port of `ports`; `0..=0` lets the kernel choose.
pub fn listen(address: IpAddr, ports: RangeInclusive<u16>) -> Result<TcpListener, ListenError> {
    let (first, last) = (*ports.start(), *ports.end());
    let mut source = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for port in ports {
        match TcpListener::bind(SocketAddr::new(address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => source = error,
        }
    }
    Err(ListenError::NoPort { address, first, last, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn an_interface_is_found_by_name_and_family() {
        let interfaces = if_addrs::get_if_addrs().unwrap();
        let lo =
            interfaces.iter().find(|i| i.is_loopback() && i.ip().is_ipv4()).expect("a loopback interface");
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        assert!(local_address(any, Some(&lo.name)).unwrap().is_loopback());
        assert_eq!(local_address(IpAddr::V6(Ipv6Addr::LOCALHOST), None).unwrap(), Ipv6Addr::LOCALHOST);
        let error = local_address(any, Some("no-such-interface")).unwrap_err().to_string();
        assert!(error.contains(&lo.name), "the error lists what there is: {error}");
    }

    #[test]
    fn a_taken_port_is_passed_over_and_a_full_range_is_an_error() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let first = listen(ip, 0..=0).unwrap();
        let taken = first.local_addr().unwrap().port();
        let error = listen(ip, taken..=taken).unwrap_err();
        assert!(matches!(error, ListenError::NoPort { first, last, .. } if first == taken && last == taken));
        // Another test may hold some port of the range, so the range is wide; only the taken one is ruled out.
        let wide = listen(ip, taken..=taken.saturating_add(500)).unwrap();
        assert_ne!(wide.local_addr().unwrap().port(), taken);
    }
}
