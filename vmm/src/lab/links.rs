//! The links of a running lab: what they are set to, and which NICs have a carrier.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use topology::model::{Direction, Endpoint, Fabric, NodeKind, Patch, Topology};
use topology::zones::{COMMON, Zones};
use topology::{Files, Folder, Sources};

use super::run_folder::LabPaths;
use super::switch::News;
use crate::api::types::{CaptureRequest, Change, Link, LinkCounters, LinkDirection};

/// How long the switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes an answer of the switch may have.
const MAX_ANSWER: u64 = 64 << 20;

/// Which NICs of a node have a carrier, in the order of its interfaces.
pub type Carriers = watch::Receiver<Vec<bool>>;

/// The links of a lab.
#[derive(Debug)]
pub struct Links {
    inner: RwLock<Inner>,
    /// Where the switch of each zone answers, and what it has of the topology.
    switches: BTreeMap<String, Station>,
    fabric: Fabric,
}

/// What is known of the switch of a zone.
#[derive(Debug)]
struct Station {
    control: PathBuf,
    sources: PathBuf,
}

#[derive(Debug)]
struct Inner {
    wiring: Wiring,
    /// Links that people have set to something else than the topology says, and to what.
    touched: BTreeMap<String, Touch>,
}

/// What a link was set to by hand: attributes of each direction, and what they copy from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Touch {
    forward: Map<String, Value>,
    backward: Map<String, Value>,
    files: Files,
}

impl Touch {
    /// Something more is set.
    fn add(&mut self, set: &Map<String, Value>, files: Files) {
        let of = |direction: &str| set.get(direction).and_then(Value::as_object);
        for (way, direction) in [
            (&mut self.forward, "forward"),
            (&mut self.backward, "backward"),
        ] {
            let both = set
                .iter()
                .filter(|(name, _)| *name != "forward" && *name != "backward");
            for (name, value) in both.chain(of(direction).into_iter().flatten()) {
                // A link has one or the other.
                match name.as_str() {
                    "rate" => drop(way.remove("trace")),
                    "trace" => drop(way.remove("rate")),
                    _ => {}
                }
                way.insert(name.clone(), value.clone());
            }
        }
        self.files.extend(files);
    }
}

/// Which links there are, and which NICs they lead to.
#[derive(Debug, Clone)]
pub struct Wiring {
    ends: Vec<Ends>,
    /// Of the machines, by name.
    nics: HashMap<String, Nics>,
}

/// The NICs of a machine.
#[derive(Debug, Clone)]
struct Nics {
    zone: String,
    names: Vec<String>,
    carriers: watch::Sender<Vec<bool>>,
}

#[derive(Debug, Clone)]
struct Ends {
    name: String,
    zone: String,
    /// For people: `node:interface`, of a switch or hub `node:port`, or just the name of an external node.
    names: [String; 2],
    /// The NIC at each end, if it is a machine's: the node's name, and its number there.
    nics: [Option<(String, usize)>; 2],
}

/// Why the switch does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no such link.
    #[error("there is no link called {0}")]
    Unknown(String),
    /// It says what is wrong.
    #[error("{0}")]
    Refused(String),
    /// It does not answer.
    #[error("the switch does not answer: {0}")]
    Silent(String),
}

/// What the switch counts of a link.
#[derive(Debug, Deserialize)]
struct Counted {
    name: String,
    attributes: [Map<String, Value>; 2],
    directions: [LinkCounters; 2],
}

impl Wiring {
    /// That of `topology`; machines whose NICs are those of `old` keep what tells them of their carriers.
    fn new(topology: &Topology, old: Option<&Self>) -> Self {
        let zones = Zones::of(topology);
        let nics = topology
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| {
                let names = node.machine()?.interfaces.iter().map(|i| i.name.clone());
                let names: Vec<_> = names.collect();
                let known = old.and_then(|old| old.nics.get(&node.name));
                let known = known.filter(|nics| nics.names == names).cloned();
                let nics = known.unwrap_or_else(|| Nics {
                    zone: zones.zone(index).to_owned(),
                    carriers: watch::Sender::new(vec![false; names.len()]),
                    names,
                });
                Some((node.name.clone(), nics))
            });
        let ends = topology.links.iter().map(|link| Ends {
            name: link.name.clone(),
            zone: zones.zone(link.ends[0].node).to_owned(),
            names: link.ends.each_ref().map(|end| end_name(topology, end)),
            nics: link.ends.map(|end| nic(topology, end)),
        });
        Self {
            nics: nics.collect(),
            ends: ends.collect(),
        }
    }

    /// The zone of a node; `None` if it is no machine.
    pub fn zone(&self, node: &str) -> Option<&str> {
        Some(&self.nics.get(node)?.zone)
    }

    /// Which NICs of a node have a carrier; `None` if it is no machine.
    pub fn carriers(&self, node: &str) -> Option<Carriers> {
        Some(self.nics.get(node)?.carriers.subscribe())
    }

    /// A NIC has a carrier when light arrives: when the direction that leads to it is up.
    fn set_carrier(&self, ends: &Ends, direction: usize, up: bool) {
        if let Some(Some((node, nic))) = ends.nics.get(1 - direction.min(1)) {
            self.set_nic(node, *nic, up);
        }
    }

    fn set_nic(&self, node: &str, nic: usize, up: bool) {
        if let Some(nics) = self.nics.get(node) {
            nics.carriers
                .send_if_modified(|nics| match nics.get_mut(nic) {
                    Some(nic) if *nic != up => {
                        *nic = up;
                        true
                    }
                    _ => false,
                });
        }
    }

    /// NICs without a link have no carrier.
    fn darken_unlinked(&self) {
        for (node, nics) in &self.nics {
            for nic in 0..nics.names.len() {
                let is_it = |end: &Option<(String, usize)>| {
                    end.as_ref().is_some_and(|(n, i)| n == node && *i == nic)
                };
                let mut ends = self.ends.iter().flat_map(|ends| &ends.nics);
                if !ends.any(is_it) {
                    self.set_nic(node, nic, false);
                }
            }
        }
    }
}

impl Links {
    /// The links of `topology`, in a lab of these paths.
    pub fn new(topology: &Topology, paths: &LabPaths) -> Self {
        let wiring = Wiring::new(topology, None);
        for (link, ends) in topology.links.iter().zip(&wiring.ends) {
            for (direction, attributes) in link.directions.iter().enumerate() {
                wiring.set_carrier(ends, direction, attributes.up);
            }
        }
        let touched = BTreeMap::new();
        let station = |zone: String| {
            let station = Station {
                control: paths.vswitch(&zone),
                sources: paths.sources(&zone),
            };
            (zone, station)
        };
        let zones = Zones::of(topology).names().into_iter();
        Self {
            inner: RwLock::new(Inner { wiring, touched }),
            switches: zones.map(station).collect(),
            fabric: topology.fabric,
        }
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is.
    pub fn wiring(&self) -> Wiring {
        self.inner().wiring.clone()
    }

    /// The zone of a node; `None` if it is no machine.
    pub fn zone(&self, node: &str) -> Option<String> {
        self.inner().wiring.zone(node).map(ToOwned::to_owned)
    }

    /// The zones that have a switch.
    pub fn zones(&self) -> impl Iterator<Item = &String> {
        self.switches.keys()
    }

    /// What there will be when the lab is what `topology` says.
    pub fn rewired(&self, topology: &Topology) -> Wiring {
        Wiring::new(topology, Some(&self.inner().wiring))
    }

    /// Has each switch run its part of `sources`; nothing has changed if one refuses. What there is from then on is
    /// `wiring`; `renamed` links are those with other names than before, `None` if they are gone.
    pub async fn apply(
        &self,
        sources: &Sources,
        wiring: Wiring,
        renamed: &HashMap<String, Option<String>>,
    ) -> Result<(), LinkError> {
        for (n, zone) in self.zones().enumerate() {
            let part = self.part(zone, sources);
            // The switch is jailed, and sees no file of the host.
            let applied = self.ask(zone, &json!({"op": "apply", "text": part})).await;
            if let Err(error) = applied {
                for zone in self.zones().take(n) {
                    self.undo(zone).await;
                }
                return Err(error);
            }
        }
        {
            let mut inner = self.inner_mut();
            inner.wiring = wiring;
            let touched = std::mem::take(&mut inner.touched).into_iter();
            let name = |(old, touch): (String, Touch)| {
                let name = renamed.get(&old).cloned().unwrap_or(Some(old));
                Some((name?, touch))
            };
            inner.touched = touched.filter_map(name).collect();
            inner.wiring.darken_unlinked();
        }
        // What the switch has told of carriers that it did not know under their names yet is among this.
        self.learn_carriers().await;
        Ok(())
    }

    /// What the switch of a zone is to run of `sources`. The kernel's fabric is asked for all, and says what it does not do.
    pub fn part(&self, zone: &str, sources: &Sources) -> Sources {
        Sources {
            zone: (self.fabric == Fabric::Vswitch).then(|| zone.to_owned()),
            ..sources.clone()
        }
    }

    /// Has a switch be what it was before the change that others have refused.
    async fn undo(&self, zone: &str) {
        let Some(station) = self.switches.get(zone) else {
            return;
        };
        let sources = std::fs::read(&station.sources).unwrap_or_default();
        if let Ok(sources) = serde_json::from_slice::<Value>(&sources) {
            // One that refuses what it was is about to end, and is started as what it was.
            let _ = self
                .ask(zone, &json!({"op": "apply", "text": sources}))
                .await;
        }
    }

    /// Has the switch of a zone that was started again be what the last one was; what it refuses.
    pub async fn restore(&self, zone: &str) -> Vec<LinkError> {
        let touched = self.inner().touched.clone();
        let mut refused = Vec::new();
        for (name, touch) in touched {
            if self.zone_of_link(&name).ok().as_deref() != Some(zone) {
                continue;
            }
            let set = json!({"forward": touch.forward, "backward": touch.backward});
            let request = json!({"op": "set", "link": name, "set": set, "files": touch.files});
            refused.extend(self.ask(zone, &request).await.err());
        }
        self.learn_carriers().await;
        refused
    }

    /// Has each NIC have the carrier that the switch says.
    async fn learn_carriers(&self) {
        // A switch that does not answer now is about to end.
        let links = self.list().await.unwrap_or_default();
        let inner = self.inner();
        for link in &links {
            let mut ends = inner.wiring.ends.iter();
            let Some(ends) = ends.find(|ends| ends.name == link.name) else {
                continue;
            };
            for (number, direction) in [&link.forward, &link.backward].into_iter().enumerate() {
                let up = direction.attributes.get("up").is_none_or(|up| *up != false);
                inner.wiring.set_carrier(ends, number, up);
            }
        }
    }

    /// What links were set to by hand.
    pub fn touches(&self) -> BTreeMap<String, Touch> {
        self.inner().touched.clone()
    }

    /// Another lab process has run this lab: links were set to this by hand, and carriers may have come and gone.
    pub async fn resume(&self, touches: BTreeMap<String, Touch>) {
        self.inner_mut().touched = touches;
        self.learn_carriers().await;
    }

    /// Links that people have set to something else than the topology says.
    pub fn touched(&self) -> BTreeSet<String> {
        self.inner().touched.keys().cloned().collect()
    }

    /// Passes on what the switch tells; what has changed, if it is about one of the links.
    pub fn hear(&self, news: &News) -> Option<Change> {
        let News::Carrier {
            link,
            direction,
            up,
        } = news;
        let wiring = &self.inner().wiring;
        let ends = wiring.ends.iter().find(|ends| ends.name == *link)?;
        wiring.set_carrier(ends, *direction, *up);
        Some(Change::Carrier {
            link: link.clone(),
            from: ends.names.get(*direction)?.clone(),
            to: ends.names.get(1 - *direction)?.clone(),
            up: *up,
        })
    }

    /// Names of the links.
    pub fn names(&self) -> Vec<String> {
        let inner = self.inner();
        let ends = inner.wiring.ends.iter();
        ends.map(|ends| ends.name.clone()).collect()
    }

    /// All links as they are now.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        self.counted("stats").await
    }

    /// All links as they are now, without lateness: costs little.
    pub async fn brief(&self) -> Result<Vec<Link>, LinkError> {
        self.counted("brief").await
    }

    async fn counted(&self, op: &str) -> Result<Vec<Link>, LinkError> {
        #[derive(Deserialize)]
        struct Stats {
            links: Vec<Counted>,
        }
        let mut all = Vec::new();
        for zone in self.zones() {
            let mut answer = self.ask(zone, &json!({"op": op})).await?;
            let strange = |error: serde_json::Error| LinkError::Silent(error.to_string());
            let stats: Stats = serde_json::from_value(answer["stats"].take()).map_err(strange)?;
            all.extend(stats.links);
        }
        let inner = self.inner();
        // The switch may just have become another one; it counts what it has.
        let place = |name: &str| inner.wiring.ends.iter().position(|ends| ends.name == name);
        let links = all.into_iter().filter_map(|counted| {
            let place = place(&counted.name)?;
            Some((place, describe(&inner.wiring.ends[place], counted)))
        });
        let mut links: Vec<_> = links.collect();
        links.sort_by_key(|(place, _)| *place);
        Ok(links.into_iter().map(|(_, link)| link).collect())
    }

    /// Everything that the switch counts, as it says it; of several all together.
    pub async fn switch(&self) -> Result<Value, LinkError> {
        let mut all = Value::Null;
        for zone in self.zones() {
            let stats = self.ask(zone, &json!({"op": "stats"})).await?["stats"].take();
            add(&mut all, stats);
        }
        Ok(all)
    }

    /// One link as it is now.
    pub async fn find(&self, name: &str) -> Result<Link, LinkError> {
        let links = self.list().await?;
        let link = links.into_iter().find(|link| link.name == name);
        link.ok_or_else(|| LinkError::Unknown(name.to_owned()))
    }

    /// Sets attributes of a link, all in one moment; they hold when this returns.
    pub async fn set(&self, name: &str, set: &Map<String, Value>) -> Result<(), LinkError> {
        let zone = self.zone_of_link(name)?;
        let file = Path::new("set");
        let folder = Folder::of(file);
        let parsed = Patch::parse_in(&Value::Object(set.clone()).to_string(), file, &folder);
        parsed.map_err(|report| LinkError::Refused(report.to_string()))?;
        let request = json!({"op": "set", "link": name, "set": set, "files": folder.files()});
        self.ask(&zone, &request).await?;
        let mut inner = self.inner_mut();
        let touch = inner.touched.entry(name.to_owned()).or_default();
        touch.add(set, folder.files());
        Ok(())
    }

    /// Makes a link what the topology says.
    pub async fn reset(&self, name: &str) -> Result<(), LinkError> {
        let zone = self.zone_of_link(name)?;
        self.ask(&zone, &json!({"op": "reset", "link": name}))
            .await?;
        self.inner_mut().touched.remove(name);
        Ok(())
    }

    fn zone_of_link(&self, name: &str) -> Result<String, LinkError> {
        let inner = self.inner();
        let ends = inner.wiring.ends.iter().find(|ends| ends.name == name);
        let ends = ends.ok_or_else(|| LinkError::Unknown(name.to_owned()))?;
        Ok(ends.zone.clone())
    }

    fn station(&self, zone: &str) -> Result<&Station, LinkError> {
        let station = self.switches.get(zone);
        station.ok_or_else(|| LinkError::Silent(format!("there is none of zone {zone}")))
    }

    /// Starts a capture. What is read from the first half is pcapng; closing the second has the switch complete it and end.
    pub async fn capture(
        &self,
        request: &CaptureRequest,
    ) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), LinkError> {
        let of_links = request.links.iter().map(|name| self.zone_of_link(name));
        let mut zones = of_links.collect::<Result<BTreeSet<_>, _>>()?;
        if request.links.is_empty() {
            zones.extend(self.zones().cloned());
        }
        let (Some(zone), true) = (zones.pop_first(), zones.is_empty()) else {
            return Err(LinkError::Refused(
                "each zone has a switch of its own, so a capture is of links of one zone: name them".into(),
            ));
        };
        let switch = &self.station(&zone)?.control;
        let request = json!({"op": "capture", "capture": request});
        let begin = async {
            let (frames, mut end) = UnixStream::connect(switch).await?.into_split();
            end.write_all(format!("{request}\n").as_bytes()).await?;
            let mut frames = BufReader::new(frames);
            let answer = answer(&mut frames).await?;
            Ok((answer, (frames, end)))
        };
        in_time(begin).await
    }

    async fn ask(&self, zone: &str, request: &Value) -> Result<Value, LinkError> {
        let switch = &self.station(zone)?.control;
        let exchange = async {
            let mut stream = UnixStream::connect(switch).await?;
            stream.write_all(format!("{request}\n").as_bytes()).await?;
            let answer = answer(&mut BufReader::new(stream)).await?;
            Ok((answer.clone(), answer))
        };
        in_time(exchange).await
    }
}

/// Adds what one switch counts to what others do: lists follow each other, numbers add up.
fn add(all: &mut Value, more: Value) {
    match (all, more) {
        (Value::Object(all), Value::Object(more)) => {
            for (name, value) in more {
                add(all.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(all), Value::Array(more)) => all.extend(more),
        (Value::Number(all), Value::Number(more)) => {
            let sum = all.as_u64().unwrap_or(0) + more.as_u64().unwrap_or(0);
            *all = sum.into();
        }
        (all, more) => {
            if all.is_null() {
                *all = more;
            }
        }
    }
}

/// The switch's answer, which is a line.
async fn answer(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Value> {
    let mut line = Vec::new();
    from.take(MAX_ANSWER).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

/// What comes with the switch's answer, unless that is a refusal or does not come.
async fn in_time<T>(
    exchange: impl Future<Output = std::io::Result<(Value, T)>>,
) -> Result<T, LinkError> {
    let (answer, with_it) = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| LinkError::Silent(format!("nothing within {} s", PATIENCE.as_secs())))?
        .map_err(|error| LinkError::Silent(error.to_string()))?;
    match answer["error"].as_str() {
        Some(error) => Err(LinkError::Refused(error.to_owned())),
        None => Ok(with_it),
    }
}

/// The links of a topology as they are before anything has happened.
pub fn as_written(topology: &Topology) -> Vec<Link> {
    let links = topology.links.iter().map(|link| {
        let ends = Ends {
            name: link.name.clone(),
            zone: COMMON.to_owned(),
            names: link.ends.each_ref().map(|end| end_name(topology, end)),
            nics: link.ends.map(|end| nic(topology, end)),
        };
        let counted = Counted {
            name: link.name.clone(),
            attributes: link.directions.each_ref().map(Direction::written),
            directions: Default::default(),
        };
        describe(&ends, counted)
    });
    links.collect()
}

fn describe(ends: &Ends, counted: Counted) -> Link {
    let [first, second] = &ends.names;
    let [there, back] = counted.attributes;
    let [there_counters, back_counters] = counted.directions;
    let direction = |from: &String, to: &String, attributes, counters| LinkDirection {
        from: from.clone(),
        to: to.clone(),
        attributes,
        counters,
    };
    Link {
        name: ends.name.clone(),
        forward: direction(first, second, there, there_counters),
        backward: direction(second, first, back, back_counters),
    }
}

fn nic(topology: &Topology, end: Endpoint) -> Option<(String, usize)> {
    let node = &topology.nodes[end.node];
    matches!(node.kind, NodeKind::Machine(_)).then(|| (node.name.clone(), end.port))
}

fn end_name(topology: &Topology, end: &Endpoint) -> String {
    let node = &topology.nodes[end.node];
    match &node.kind {
        NodeKind::Machine(machine) => {
            format!("{}:{}", node.name, machine.interfaces[end.port].name)
        }
        NodeKind::Switch(_) | NodeKind::Hub => format!("{}:{}", node.name, end.port),
        NodeKind::External(_) => node.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_nic_has_a_carrier_when_the_direction_to_it_is_up() {
        let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}, "s": {"kind": "switch"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"], "forward": {"up": false}}, {"endpoints": ["a:eth1", "s"]}]}"#;
        let topology = Topology::parse(text, Path::new("lab.json"))
            .unwrap()
            .topology;
        let links = Links::new(&topology, &LabPaths::at(PathBuf::new()));
        let carriers = |node: &str| {
            links
                .wiring()
                .carriers(node)
                .map(|nics| nics.borrow().clone())
        };
        assert_eq!(carriers("a"), Some(vec![true, true]));
        assert_eq!(carriers("b"), Some(vec![false]));
        assert_eq!(carriers("s"), None);
        let carrier = |link: &str, direction, up| {
            links.hear(&News::Carrier {
                link: link.to_owned(),
                direction,
                up,
            });
        };
        carrier("a:eth0--b:eth0", 0, true);
        carrier("a:eth1--s:0", 1, false);
        assert_eq!(carriers("a"), Some(vec![true, false]));
        assert_eq!(carriers("b"), Some(vec![true]));
        // What is none of ours changes nothing.
        carrier("a:eth1--s:0", 7, false);
        carrier("b:eth1--s", 0, false);
        assert_eq!(carriers("a"), Some(vec![true, false]));
    }

    #[test]
    fn what_was_set_by_hand_is_known_by_direction() {
        let set = |touch: &mut Touch, set: Value| {
            touch.add(set.as_object().unwrap(), Files::default());
        };
        let mut touch = Touch::default();
        set(&mut touch, json!({"delay": "1ms", "rate": "1Mbit"}));
        set(
            &mut touch,
            json!({"backward": {"delay": "2ms"}, "loss": "1%"}),
        );
        // In place of a rate, not beside it.
        set(&mut touch, json!({"forward": {"trace": "/t"}}));
        let known = json!([touch.forward, touch.backward]);
        let expected = json!([
            {"delay": "1ms", "loss": "1%", "trace": "/t"},
            {"delay": "2ms", "loss": "1%", "rate": "1Mbit"},
        ]);
        assert_eq!(known, expected);
        set(&mut touch, json!({"rate": "3Mbit"}));
        assert_eq!(touch.forward.get("trace"), None);
    }
}
