//! Keeps a switch running: one that ends by itself is started again, and becomes what it was.
//!
//! The machines notice by themselves: their monitors connect again and hand over their rings, and go on behind the last frame that
//! the old switch had completed. What was inside links is lost with it, and so are counters; seeds and schedules are those of the lab.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use topology::model::Fabric;

use super::Context;
use super::links::Links;
use super::orders::Roster;
use super::switch::{News, Ready, Setup, Switch};
use crate::api::types::{EngineName, NodeOrder, NodeState};
use crate::failure::{Code, Failure};
use crate::process::Process;

/// How often in a row it is started again.
const TRIES: u32 = 5;
/// The pause before the second try; it doubles with each that follows. The first is made at once.
const PAUSE: Duration = Duration::from_millis(100);
/// A switch that has run for so long has not been started in vain.
const STEADY: Duration = Duration::from_mins(1);

/// The switch of a zone, whichever process that is by now.
#[derive(Debug)]
pub struct Keeper<'a> {
    context: &'a Context,
    setup: &'a Setup,
    links: &'a Arc<Links>,
    roster: Roster,
    /// When this one was started.
    since: Instant,
    switch: Switch,
}

impl<'a> Keeper<'a> {
    /// Starts the switch, or takes over the one that runs; has to be called, and later polled, on the main thread.
    pub fn start(
        context: &'a Context,
        setup: &'a Setup,
        links: &'a Arc<Links>,
        roster: &Roster,
        running: Option<Process>,
    ) -> Result<(Self, Ready), Failure> {
        let (switch, ready) = match running {
            None => spawn(context, setup, links)?,
            Some(process) => adopt(context, setup, links, process)?,
        };
        let keeper = Self {
            context,
            setup,
            links,
            roster: roster.clone(),
            since: Instant::now(),
            switch,
        };
        Ok((keeper, ready))
    }

    /// Starts the switch again whenever it ends. Returns when that is of no use.
    pub async fn keep(&mut self) -> Failure {
        let mut tries = 0;
        loop {
            let mut how = self.switch.failed().await;
            if !self.switch.is_ready() && tries == 0 {
                // It has never worked, and will not.
                return Failure::new(Code::Lab, how);
            }
            if self.since.elapsed() > STEADY {
                tries = 0;
            }
            loop {
                tries += 1;
                if tries > TRIES {
                    return Failure::new(
                        Code::Lab,
                        format!("{how}; it was started again {TRIES} times in a row"),
                    );
                }
                let what_follows = format!("{how}; it is started again");
                self.context.state.notice(None, what_follows);
                if tries > 1 {
                    sleep(PAUSE * 2_u32.pow(tries - 2)).await;
                }
                match self.start_again().await {
                    Ok(()) => break,
                    Err(why) => how = why,
                }
            }
        }
    }

    async fn start_again(&mut self) -> Result<(), String> {
        self.context.janitor().forget(self.switch.pid);
        self.context.state.set_switch(&self.setup.zone, None);
        self.since = Instant::now();
        let (switch, ready) =
            spawn(self.context, self.setup, self.links).map_err(|failure| failure.message)?;
        self.switch = switch;
        tokio::select! {
            ready = ready.wait() => ready.map_err(|failure| failure.message)?,
            how = self.switch.failed() => return Err(how),
        }
        let took = self.since.elapsed().as_millis();
        let mut message = format!("{} serves again after {took} ms", self.setup.called());
        for refused in self.links.restore(&self.setup.zone).await {
            message = format!("{message}; {refused}");
        }
        self.context.state.switch_restarted(message);
        self.restart_cut_off();
        Ok(())
    }

    /// Machines whose interfaces are devices of the switch, which have gone with it: containers, and all on the kernel's fabric.
    fn restart_cut_off(&self) {
        for node in self.context.state.lab().nodes {
            let is_up = !matches!(node.state, NodeState::Stopped | NodeState::Ended);
            let is_cut_off =
                self.context.fabric == Fabric::Kernel || node.engine == Some(EngineName::Container);
            let is_here = self.links.zone(&node.name).as_ref() == Some(&self.setup.zone);
            if !is_cut_off || !is_up || !is_here {
                continue;
            }
            if let Some(orders) = self.roster.find(&node.name) {
                // One that is about to end needs nothing any more.
                tokio::spawn(async move { orders.give(NodeOrder::Restart).await });
            }
        }
    }

    /// Ends it.
    pub async fn stop(self) {
        let pid = self.switch.pid;
        self.switch.stop().await;
        self.context.janitor().forget(pid);
        self.context.state.set_switch(&self.setup.zone, None);
    }
}

fn spawn(context: &Context, setup: &Setup, links: &Arc<Links>) -> Result<(Switch, Ready), Failure> {
    let (paths, janitor) = (&context.paths, &context.janitor);
    let elapsed = context.origin.elapsed();
    let (switch, ready) = Switch::start(setup, paths, janitor, elapsed, hear(context, links))?;
    context.state.set_switch(&setup.zone, Some(switch.pid));
    Ok((switch, ready))
}

/// Goes on with a switch that another lab process has started.
fn adopt(
    context: &Context,
    setup: &Setup,
    links: &Arc<Links>,
    process: Process,
) -> Result<(Switch, Ready), Failure> {
    let adopted = Switch::adopt(setup, process, hear(context, links)).map_err(|error| {
        let message = format!("cannot take over {}: {error}", setup.called());
        Failure::new(Code::Lab, message)
    })?;
    context.state.set_switch(&setup.zone, Some(adopted.0.pid));
    Ok(adopted)
}

/// What to do with what a switch tells.
fn hear(context: &Context, links: &Arc<Links>) -> impl Fn(News) + Send + use<> {
    let (links, state) = (links.clone(), context.state.clone());
    move |news| {
        if let Some(change) = links.hear(&news) {
            state.tell(change);
        }
    }
}
