//! What leads out of the lab, as a person writes it.

use schemars::JsonSchema;

/// A port to the outside world; exactly one of `tap`, `interface` and `vxlan`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct External {
    /// The name of a TAP device of the host. One that is not there is made, and gone when the lab has ended.
    pub tap: Option<String>,
    /// Bytes of the largest IP packet of the TAP device, 68 to 65521; default 1500.
    pub mtu: Option<u64>,
    /// The name of a network interface of the host, which is given to the lab.
    pub interface: Option<String>,
    /// A tunnel in VXLAN format (RFC 7348), as of a Linux `vxlan` device.
    pub vxlan: Option<Vxlan>,
}

/// A tunnel in VXLAN format to one other end.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vxlan {
    /// The VXLAN network identifier, 0 to 16777215.
    pub vni: u64,
    /// The IP address of the other end.
    pub remote: String,
    /// The IP address of this end; default: any of the host.
    pub local: Option<String>,
    /// The UDP port of both ends; default 4789.
    pub port: Option<u64>,
}
