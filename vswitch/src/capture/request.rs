//! What is to be captured, as it is asked for.

use std::path::PathBuf;

use capture_filter::{CompileError, Instruction, compile};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bpf::{Program, ProgramError};
use super::tap::Point;
use crate::config::LinkPlan;
use crate::names;

/// The most bytes of a frame that can be kept: all of it.
pub const MAX_SNAPLEN: u32 = 262_144;

/// What is to be captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Links by name, or one direction as `FROM>TO`; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Where; none means after delivery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// Which frames: a program of classic BPF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Vec<Instruction>>,
    /// The most bytes kept of each frame; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
}

/// What is wrong with a request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// There is none of that name.
    #[error("there is no link `{0}`{1}")]
    NoSuchLink(String, String),
    /// The filter cannot be used.
    #[error(transparent)]
    Filter(#[from] ProgramError),
    /// The filter cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Nothing is kept, or more than there can be.
    #[error("`snaplen` is {0}, but can be 1 to {MAX_SNAPLEN} bytes")]
    Snaplen(u32),
    /// An option is none.
    #[error(
        "`{0}` is no option of a capture; there are link=, point=, snaplen= and, at the end, filter="
    )]
    NoSuchOption(String),
    /// A point is none.
    #[error("`{0}` is no point of capture; there are before, after and drops")]
    NoSuchPoint(String),
    /// There is no file.
    #[error(
        "a capture needs a file: FILE[,link=LINK][,point=POINT][,snaplen=BYTES][,filter=EXPRESSION]"
    )]
    NoFile,
}

/// One interface of the capture: a point of a direction of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    pub(super) link: usize,
    pub(super) way: usize,
    pub(super) point: Point,
}

impl Request {
    /// Checks all but the links.
    pub(super) fn check(&self) -> Result<(Option<Program>, u32), RequestError> {
        let snaplen = self.snaplen.unwrap_or(MAX_SNAPLEN);
        if !(1..=MAX_SNAPLEN).contains(&snaplen) {
            return Err(RequestError::Snaplen(snaplen));
        }
        let filter = self.filter.as_deref().map(Program::new).transpose()?;
        Ok((filter, snaplen))
    }

    /// Finds what it names: in the order of the links, each interface once.
    pub(super) fn select(&self, links: &[LinkPlan]) -> Result<Vec<Selected>, RequestError> {
        let mut wanted = vec![[self.links.is_empty(); 2]; links.len()];
        for name in &self.links {
            let (link, ways) = find(links, name)?;
            for (way, wanted) in wanted[link].iter_mut().enumerate() {
                *wanted |= ways[way];
            }
        }
        let points: Vec<Point> = if self.points.is_empty() {
            vec![Point::After]
        } else {
            let all = Point::ALL.into_iter();
            all.filter(|point| self.points.contains(point)).collect()
        };
        let directions = wanted.iter().enumerate().flat_map(|(link, ways)| {
            let ways = ways.iter().enumerate().filter(|(_, wanted)| **wanted);
            ways.map(move |(way, _)| (link, way))
        });
        Ok(directions
            .flat_map(|(link, way)| points.iter().map(move |point| (link, way, *point)))
            .map(|(link, way, point)| Selected { link, way, point })
            .collect())
    }
}

/// A link, and which of its directions are meant.
fn find(links: &[LinkPlan], name: &str) -> Result<(usize, [bool; 2]), RequestError> {
    for (i, link) in links.iter().enumerate() {
        if link.name == name {
            return Ok((i, [true; 2]));
        }
        let way = link.ways().iter().position(|way| *way == direction(name));
        if let Some(way) = way {
            return Ok((i, [way == 0, way == 1]));
        }
    }
    let all = links.iter().flat_map(|link| {
        let ways = link.ways().map(|way| way.replace(' ', ""));
        std::iter::once(link.name.clone()).chain(ways)
    });
    let help = names::help(name, &all.collect::<Vec<_>>());
    Err(RequestError::NoSuchLink(name.to_owned(), help))
}

/// A direction as tables have it.
fn direction(written: &str) -> String {
    match written.split_once('>') {
        Some((from, to)) => format!("{} > {}", from.trim(), to.trim()),
        None => String::new(),
    }
}

/// A capture to a file, as it is given on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRequest {
    /// The file.
    pub file: PathBuf,
    /// What goes there.
    pub request: Request,
}

impl FileRequest {
    /// Reads `FILE[,link=LINK]…[,point=POINT]…[,snaplen=BYTES][,filter=EXPRESSION]`; the filter is compiled.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let (text, filter) = match text.split_once(",filter=") {
            Some((before, expression)) => (before, Some(compile(expression)?)),
            None => (text, None),
        };
        let mut parts = text.split(',');
        let file = parts.next().filter(|file| !file.is_empty());
        let mut request = Request {
            filter,
            ..Request::default()
        };
        for part in parts {
            let unknown = || RequestError::NoSuchOption(part.to_owned());
            match part.split_once('=').ok_or_else(unknown)? {
                ("link", link) => request.links.push(link.to_owned()),
                ("point", point) => request.points.push(point.parse()?),
                ("snaplen", bytes) => request.snaplen = Some(bytes.parse().map_err(|_| unknown())?),
                _ => return Err(unknown()),
            }
        }
        let file = file.ok_or(RequestError::NoFile)?.into();
        request.check()?;
        Ok(Self { file, request })
    }
}

impl std::str::FromStr for Point {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|point| point.name() == text);
        found.ok_or_else(|| RequestError::NoSuchPoint(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn links() -> Vec<LinkPlan> {
        [
            ("uplink", "a.eth0", "b.eth0"),
            ("b:eth1--sw:0", "b.eth1", "sw"),
        ]
        .map(|(name, a, b)| LinkPlan {
            name: name.into(),
            ends: [a.into(), b.into()],
            directions: [Arc::default(), Arc::default()],
            shard: 0,
            lanes: [0, 1],
        })
        .into()
    }

    fn select(
        links_asked: &[&str],
        points: &[Point],
    ) -> Result<Vec<(usize, usize, Point)>, String> {
        let request = Request {
            links: links_asked.iter().map(|l| (*l).to_owned()).collect(),
            points: points.to_vec(),
            ..Request::default()
        };
        let selected = request.select(&links()).map_err(|e| e.to_string())?;
        Ok(selected
            .into_iter()
            .map(|s| (s.link, s.way, s.point))
            .collect())
    }

    #[test]
    fn links_and_directions() {
        use Point::{After, Before, Drops};
        let all: Vec<_> = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .map(|(l, w)| (l, w, After))
            .into();
        assert_eq!(select(&[], &[]).unwrap(), all);
        assert_eq!(
            select(&["b.eth0>a.eth0", "uplink"], &[]).unwrap(),
            [(0, 0, After), (0, 1, After)],
            "each once"
        );
        assert_eq!(
            select(&["sw > b.eth1"], &[Drops, Before, Drops]).unwrap(),
            [(1, 1, Before), (1, 1, Drops)]
        );
    }

    #[test]
    fn wrong_names_get_help() {
        let told = select(&["upling"], &[]).unwrap_err();
        assert!(
            told.contains("no link `upling`; did you mean `uplink`?"),
            "{told}"
        );
        let told = select(&["a.eth0>b.eth1"], &[]).unwrap_err();
        assert!(told.contains("a.eth0>b.eth0"), "{told}");
    }

    #[test]
    fn files_with_options() {
        let parsed =
            FileRequest::parse("x/y.pcapng,link=uplink,point=before,point=drops,snaplen=96");
        let FileRequest { file, request } = parsed.unwrap();
        assert_eq!(file, PathBuf::from("x/y.pcapng"));
        assert_eq!(request.links, ["uplink"]);
        assert_eq!(request.points, [Point::Before, Point::Drops]);
        assert_eq!((request.snaplen, request.filter), (Some(96), None));
        for (bad, why) in [
            ("", "needs a file"),
            (",link=a", "needs a file"),
            ("f,lnk=a", "no option"),
            ("f,link", "no option"),
            ("f,point=later", "no point"),
            ("f,snaplen=0", "can be 1 to"),
        ] {
            let told = FileRequest::parse(bad).unwrap_err().to_string();
            assert!(told.contains(why), "{bad}: {told}");
        }
    }
}
