//! Attachments: one pinned tcx link per interface and program; and the one program that is pinned without any.
//!
//! A fresh process knows an attachment as ours by its pin below `links/`. A restart or upgrade updates the link in
//! place, so no packet passes unseen; an interface that is gone leaves a dead link, whose pin is swept.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::programs::{
    ProgramError, TcAttachType,
    links::{FdLink, LinkError, LinkOrder, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
    xdp::{XdpLink, XdpMode},
};
use canal_common::names;
use tracing::{debug, info};

use super::{
    handle::Handle,
    object::{Object, ObjectError},
    pins::{PinError, Pins},
};

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("cannot attach {program} to {interface}: {source}")]
    Attach { program: &'static str, interface: String, source: Box<ProgramError> },
    #[error("cannot take over the link of {program} on {interface}: {source}")]
    Link { program: &'static str, interface: String, source: LinkError },
    #[error("cannot pin {program} on {interface}: {source}")]
    PinLink { program: &'static str, interface: String, source: aya::pin::PinError },
    #[error("cannot pin judge: {0}")]
    PinJudge(#[source] aya::pin::PinError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// Which programs belong on which kind of interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Pod,
    Uplink,
    /// Below [`Place::Uplink`].
    Driver,
    Overlay,
}

/// Where on the interface.
#[derive(Debug, Clone, Copy)]
enum Point {
    Tcx(TcAttachType),
    /// XDP in the driver itself: its generic form is slower than what it would save.
    Driver,
}

impl Place {
    fn programs(self) -> &'static [(&'static str, Point)] {
        const INGRESS: Point = Point::Tcx(TcAttachType::Ingress);
        const EGRESS: Point = Point::Tcx(TcAttachType::Egress);
        match self {
            Self::Pod => &[(names::TO_POD, EGRESS), (names::FROM_POD, INGRESS)],
            Self::Uplink => &[(names::FROM_WIRE, INGRESS)],
            Self::Driver => &[(names::XDP_WIRE, Point::Driver)],
            Self::Overlay => &[(names::TO_OVERLAY, EGRESS), (names::FROM_OVERLAY, INGRESS)],
        }
    }
}

#[derive(Debug)]
pub struct Hooks {
    pins: Pins,
    /// By the file names of their pins: attachments with this process's programs.
    current: BTreeMap<String, Attachment>,
    /// The program `judge` that is pinned is this process's.
    is_judge_pinned: bool,
}

#[derive(Debug)]
struct Attachment {
    ifindex: u32,
    /// The programs were loaded anew since.
    is_stale: bool,
    /// Whoever removes the pin takes no program off its interface.
    hold: Handle,
}

impl Hooks {
    pub fn new(pins: Pins) -> Self {
        Self { pins, current: BTreeMap::new(), is_judge_pinned: false }
    }

    /// The programs were loaded anew: every attachment is to be updated.
    pub fn renew(&mut self) {
        self.current.values_mut().for_each(|attachment| attachment.is_stale = true);
        self.is_judge_pinned = false;
    }

    /// Pins again what somebody has unpinned. Tells which.
    pub fn put_back(&self) -> Result<Vec<String>, PinError> {
        let mut back = Vec::new();
        for (file, attachment) in &self.current {
            if self.pins.put_back(&attachment.hold, &self.pins.links_dir().join(file))? {
                back.push(file.clone());
            }
        }
        Ok(back)
    }

    /// Puts the programs of this process on `interface`, in place of those of an earlier one.
    pub fn attach(
        &mut self,
        object: &mut Object,
        place: Place,
        interface: &str,
        ifindex: u32,
    ) -> Result<(), HookError> {
        for (program, point) in place.programs() {
            let path = self.pins.link(interface, program);
            let file = file_name(&path);
            // An interface that was deleted and made again has the old name and a new index.
            let is_current =
                |known: &Attachment| known.ifindex == ifindex && !known.is_stale && path.exists();
            if self.current.get(&file).is_some_and(is_current) {
                continue;
            }
            if path.exists() {
                match update(object, program, *point, &path) {
                    Ok(()) => {
                        info!(program, interface, "took over the attachment");
                        self.keep(file, ifindex, &path)?;
                        continue;
                    }
                    // The interface was replaced by another of the same name, or the pin is not a tcx link.
                    Err(error) => {
                        debug!(program, interface, %error, "the pinned link is dead");
                        Pins::unpin(&path)?;
                    }
                }
            }
            if matches!(point, Point::Driver) {
                // A driver takes one program, and a hold on the last attachment keeps it.
                self.current.remove(&file);
            }
            attach(object, program, *point, interface, ifindex, &path)?;
            info!(program, interface, "attached");
            self.keep(file, ifindex, &path)?;
        }
        Ok(())
    }

    fn keep(&mut self, file: String, ifindex: u32, path: &std::path::Path) -> Result<(), PinError> {
        let hold = Pins::hold(path)?;
        self.current.insert(file, Attachment { ifindex, is_stale: false, hold });
        Ok(())
    }

    /// Programs of ours, this process's or an earlier one's, are on this very interface.
    pub fn are_on(&self, place: Place, interface: &str, ifindex: u32) -> bool {
        place.programs().iter().all(|(program, _)| {
            let path = self.pins.link(interface, program);
            let known = self.current.get(&file_name(&path));
            path.exists() && known.is_none_or(|known| known.is_stale || known.ifindex == ifindex)
        })
    }

    /// The kernel's number of the program in this interface's driver, if it is ours.
    pub fn in_driver(&self, interface: &str) -> Option<u32> {
        let link = PinnedLink::from_pin(self.pins.link(interface, names::XDP_WIRE)).ok()?;
        FdLink::from(link).info().ok().map(|info| info.program_id())
    }

    /// Pins the program that is attached nowhere, in the place of an earlier process's.
    pub fn pin_judge(&mut self, object: &mut Object) -> Result<(), HookError> {
        let path = self.pins.judge();
        let file = file_name(&path);
        if self.is_judge_pinned && path.exists() {
            return Ok(());
        }
        let fresh = path.with_file_name(format!("{file}-new"));
        Pins::unpin(&fresh)?;
        object.program(names::JUDGE).pin(&fresh).map_err(HookError::PinJudge)?;
        Pins::replace(&fresh, &path)?;
        self.is_judge_pinned = true;
        Ok(())
    }

    /// Detaches from an interface that is no longer ours, or is gone.
    pub fn detach(&mut self, place: Place, interface: &str) -> Result<(), HookError> {
        for (program, _) in place.programs() {
            let path = self.pins.link(interface, program);
            Pins::unpin(&path)?;
            self.current.remove(&file_name(&path));
        }
        Ok(())
    }

    /// Forgets the attachments of interfaces that are gone, and detaches what is not `wanted` any more.
    pub fn sweep(&mut self, wanted: &BTreeSet<(Place, String)>) -> Result<(), HookError> {
        let keep: BTreeSet<String> = wanted
            .iter()
            .flat_map(|(place, interface)| {
                place.programs().iter().map(|(program, _)| file_name(&self.pins.link(interface, program)))
            })
            .collect();
        for (file, path) in self.pins.links()? {
            if !keep.contains(&file) {
                info!(link = file, "detached: its interface is gone, or no pod's any more");
                Pins::unpin(&path)?;
            }
        }
        // With the last hold on it an attachment ends.
        self.current.retain(|file, _| keep.contains(file));
        Ok(())
    }
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Swaps the program of a pinned link, atomically. The pin keeps the attachment, not our handle on the link.
fn update(object: &mut Object, program: &str, point: Point, path: &std::path::Path) -> Result<(), io::Error> {
    let link = FdLink::from(PinnedLink::from_pin(path).map_err(io::Error::other)?);
    match point {
        Point::Tcx(_) => {
            let classifier = object.program(program);
            let link = SchedClassifierLink::try_from(link).map_err(io::Error::other)?;
            let id = classifier.attach_to_link(link).map_err(io::Error::other)?;
            drop(classifier.take_link(id).map_err(io::Error::other)?);
        }
        Point::Driver => {
            let driver = object.driver_program().map_err(io::Error::other)?;
            let link = XdpLink::try_from(link).map_err(io::Error::other)?;
            let id = driver.attach_to_link(link).map_err(io::Error::other)?;
            drop(driver.take_link(id).map_err(io::Error::other)?);
        }
    }
    Ok(())
}

fn attach(
    object: &mut Object,
    program: &'static str,
    point: Point,
    interface: &str,
    ifindex: u32,
    path: &std::path::Path,
) -> Result<(), HookError> {
    let failed =
        |source| HookError::Attach { program, interface: interface.to_owned(), source: Box::new(source) };
    let link = match point {
        Point::Tcx(kind) => {
            let classifier = object.program(program);
            // First: nobody may take a pod's packet away before it is checked.
            let id = classifier
                .attach_with_options(interface, kind, TcAttachOptions::TcxOrder(LinkOrder::first()))
                .map_err(failed)?;
            FdLink::try_from(classifier.take_link(id).map_err(failed)?)
        }
        Point::Driver => {
            let driver = object.driver_program()?;
            let id = driver.attach_to_if_index(ifindex, XdpMode::Driver).map_err(failed)?;
            FdLink::try_from(driver.take_link(id).map_err(failed)?)
        }
    };
    let link = link.map_err(|source| HookError::Link { program, interface: interface.to_owned(), source })?;
    let pinned = link.pin(path).map_err(|source| HookError::PinLink {
        program,
        interface: interface.to_owned(),
        source,
    })?;
    drop(pinned);
    Ok(())
}
