//! VXLAN of a test's own making.

/// What is inside an envelope.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    pub(crate) vni: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
}

/// The payload of the outer UDP datagram: an ICMP echo request in Ethernet in VXLAN.
pub(crate) fn ping(inner: Inner) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((inner.vni << 8).to_be_bytes());
    bytes.extend(inner.mac);
    bytes.extend([0x0e, 0, 0, 0, 0, 0x77]);
    bytes.extend([0x08, 0x00]);
    bytes.extend(echo_request(inner.src, inner.dst));
    bytes
}

/// IPv4 and ICMP echo request with right checksums.
pub(crate) fn echo_request(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 7, 0, 0, 64, 1, 0, 0];
    ip.extend(src);
    ip.extend(dst);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut icmp = vec![8, 0, 0, 0, 0x77, 0x77, 0, 1];
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ip.extend(icmp);
    ip
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// `82:d2:48:77:ea:cf`
pub(crate) fn mac(text: &str) -> [u8; 6] {
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}
