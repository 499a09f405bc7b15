//! Runs the event loop: passes each event to the [`Reconciler`], then publishes the
//! status.
//!
//! | event | source |
//! |---|---|
//! | stop, reload | systemd |
//! | renew, reconfigure | D-Bus |
//! | change of the network configuration | rtnetlink |
//! | DHCP message, ARP packet | sockets |
//! | changed hostname | `/proc` |
//! | lease of the boot before | file of the state volume, see buildos-volumes(8) |
//! | timer | timerfd |
//!
//! The loop waits only for events and for the kernel.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use buildos_dhcp::address_conflict::Report;
use buildos_dhcp::{Event, Instant, Lease, Transmit, arp};
use buildos_service::file_watch::FileWatch;
use buildos_service::{Refused, Request, Service, heap, random};
use buildos_types::LinkIndex;
use tokio::sync::{mpsc, watch};

use crate::change_budget::ChangeBudget;
use crate::clock::Alarm;
use crate::dbus::{self, Command};
use crate::exports::{interfaces, resolv_conf, timesyncd};
use crate::history::History;
use crate::hostname::HostnameMonitor;
use crate::kernel::{KernelError, Rtnetlink};
use crate::observed::{Link, Observed};
use crate::plan::Op;
use crate::reconcile::{Kernel, Network, Reconciler};
use crate::runtime_files::RuntimeFiles;
use crate::settings::Settings;
use crate::sockets::{Incoming, Sockets};
use crate::status::{self, Clocks, Status};
use crate::uplink::candidate::Candidate;
use crate::uplink::gateway;
use crate::uplink::listeners::Listen;
use crate::uplink::notice::Notice;
use crate::{clock, messages, other_manager, state_file};

/// Directory of published files, and of the state for a restarted netd.
const RUNTIME_DIRECTORY: &str = "/run/buildos/netd";
/// State of the boot before, once the state volume is mounted.
const FORMER_BOOT: &str = "run/buildos/state/netd.json";
/// Delay of the status after changes other than of the lease. A renewal, which changes the
/// state of the client twice, is over by then, and the kernel is configured.
const STATUS_DELAY: Duration = Duration::from_millis(20);
/// Number of links that appeared or disappeared after which netd returns free memory.
const MANY_LINKS: usize = 16;
/// Delay of that, and of the same after the start: the bus has published the links by then.
const TRIM_DELAY: Duration = Duration::from_secs(5);
/// Maximum number of queued D-Bus requests.
const COMMANDS: usize = 4;

/// Reason for netd to end.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// The kernel's network configuration is not accessible.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Packet sockets are not available.
    #[error("cannot open a packet socket (CAP_NET_RAW is needed)")]
    Socket(#[source] io::Error),
    /// Timers are not available.
    #[error("cannot set a timer")]
    Timer(#[source] io::Error),
    /// Another program configures the network.
    #[error("netd does not start")]
    OtherManager(#[source] Refused),
}

/// Runs until systemd stops the daemon. Leaves the kernel's configuration as it is, so
/// that a restart does not cut connections.
///
/// # Errors
///
/// The kernel is not accessible, or another program configures the network.
pub async fn run(mut service: Service<Settings>) -> Result<(), NetdError> {
    refuse_other_manager()?;
    let mut netd = Netd::new(service.settings().clone())?;
    netd.start().await?;
    netd.publish(&mut service, true);
    let alarm = Alarm::new().map_err(NetdError::Timer)?;
    let (command_sender, mut commands) = mpsc::channel(COMMANDS);
    let bus = tokio::spawn(dbus::serve(netd.statuses.subscribe(), command_sender));
    service.ready();
    loop {
        let paused_until = netd.changes.paused_until().filter(|at| *at > clock::now());
        let deadline = [
            netd.reconciler.deadline(),
            netd.files.deadline(),
            netd.status_due,
            netd.trim_at,
            paused_until,
        ];
        let deadline = deadline.into_iter().flatten().min();
        let mut reload = false;
        tokio::select! {
            request = service.request() => match request {
                Request::Stop => break,
                Request::Reload => reload = true,
            },
            Some(command) = commands.recv() => match command {
                Command::Renew => netd.reconciler.renew(clock::now()),
                Command::Reconfigure => reload = true,
            },
            change = netd.host.kernel.changed(), if paused_until.is_none() => {
                netd.changes.spend(clock::now());
                netd.reconciler.kernel_changed(change?.by);
            }
            incoming = netd.host.sockets.receive() => netd.reconciler.receive(clock::now(), &incoming),
            () = hostname_changed(netd.hostname.as_mut()) => netd.update_hostname(),
            () = former_boot_changed(netd.former_boot.as_ref()) => netd.ask_for_former_lease(),
            () = std::future::ready(()), if netd.step_due => {}
            fired = alarm.wait(deadline) => {
                fired.map_err(NetdError::Timer)?;
                netd.reconciler.timeout(clock::now());
            }
        }
        if reload {
            netd.configure(service.reload().clone());
        }
        netd.step_due = false;
        netd.host.kernel.begin_step();
        netd.reconciler.step(&mut netd.host).await?;
        netd.publish(&mut service, reload);
        if reload {
            service.ready();
        }
    }
    bus.abort();
    Ok(())
}

/// Refuses to start if another manager configures the network, unless netd restarted within
/// the same boot.
fn refuse_other_manager() -> Result<(), NetdError> {
    let restarted = state_path().exists();
    match other_manager::find(Path::new("/")).filter(|_| !restarted) {
        None => Ok(()),
        Some(manager) => Err(NetdError::OtherManager(Refused {
            message_id: messages::OTHER_MANAGER,
            reason: manager.to_string(),
        })),
    }
}

fn state_path() -> PathBuf {
    Path::new(RUNTIME_DIRECTORY).join("state.json")
}

async fn hostname_changed(hostname: Option<&mut HostnameMonitor>) {
    match hostname {
        Some(hostname) => hostname.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for a change of the file of the state volume. Without a watch, waits indefinitely.
async fn former_boot_changed(watch: Option<&FileWatch>) {
    let changed = match watch {
        Some(watch) => watch.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

struct Netd {
    reconciler: Reconciler,
    host: Host,
    changes: ChangeBudget,
    hostname: Option<HostnameMonitor>,
    /// Waits for the lease of the boot before, until br0 has a lease.
    former_boot: Option<FileWatch>,
    statuses: watch::Sender<Status>,
    files: RuntimeFiles,
    /// Time at which the status follows a change.
    status_due: Option<Instant>,
    /// Messages were answered after the last step.
    step_due: bool,
    /// Number of links at the last return of free memory.
    links: usize,
    /// Time of the next return of free memory.
    trim_at: Option<Instant>,
}

impl Netd {
    fn new(settings: Settings) -> Result<Self, NetdError> {
        let reconciler = Reconciler::new(settings, random::seed());
        Ok(Self {
            host: Host {
                kernel: Rtnetlink::open()?,
                sockets: Sockets::open().map_err(NetdError::Socket)?,
                history: History::default(),
            },
            changes: ChangeBudget::default(),
            hostname: HostnameMonitor::open().ok(),
            // Without inotify, the host begins as one without a state volume.
            former_boot: FileWatch::new(Path::new("/"), &[FORMER_BOOT]).ok(),
            statuses: watch::Sender::new(Status::new(&reconciler, Vec::new(), clocks())),
            reconciler,
            files: RuntimeFiles::new(RUNTIME_DIRECTORY),
            status_due: None,
            step_due: false,
            links: 0,
            // The start has needed more than the rest.
            trim_at: Some(clock::now().saturating_add(TRIM_DELAY)),
        })
    }

    async fn start(&mut self) -> Result<(), KernelError> {
        self.update_hostname();
        let former = state_file::read(&state_path());
        self.reconciler.start(&mut self.host, former).await?;
        self.ask_for_former_lease();
        self.reconciler.step(&mut self.host).await
    }

    /// Asks for the lease of the boot before, if the state volume has it by now.
    fn ask_for_former_lease(&mut self) {
        let has_lease = self.reconciler.election().lease().is_some();
        let Some(watch) = self.former_boot.take_if(|_| !has_lease) else {
            self.former_boot = None;
            return;
        };
        if watch.add_directories().is_err() {
            return;
        }
        match state_file::read_former_boot(&Path::new("/").join(FORMER_BOOT)) {
            Some(former) => self.reconciler.ask_for_former_lease(clock::now(), former),
            None => self.former_boot = Some(watch),
        }
    }

    fn configure(&mut self, settings: Settings) {
        self.reconciler.configure(clock::now(), settings);
        self.update_hostname();
    }

    fn update_hostname(&mut self) {
        let hostname = self.hostname.as_mut().and_then(HostnameMonitor::read);
        self.reconciler.set_hostname(clock::now(), hostname);
    }

    /// Publishes the status if the lease changed or `at_once` is true, and otherwise after
    /// [`STATUS_DELAY`]. Then closes unused sockets: the kernel takes up to 20 ms to close a
    /// packet socket.
    fn publish(&mut self, service: &mut Service<Settings>, at_once: bool) {
        let now = clock::now();
        let lease_changed =
            status::lease(&self.reconciler) != self.statuses.borrow().lease.as_ref();
        let delay = match at_once || lease_changed {
            true => Duration::ZERO,
            false => STATUS_DELAY,
        };
        let due = now.saturating_add(delay);
        let due = self.status_due.map_or(due, |earlier| earlier.min(due));
        self.status_due = Some(due).filter(|due| *due > now);
        if self.status_due.is_none() {
            self.publish_status(service);
        }
        self.files.timeout(now);
        self.trim(now);
        let listeners = self.reconciler.listeners();
        self.host.sockets.close_others(&listeners);
    }

    fn publish_status(&mut self, service: &mut Service<Settings>) {
        let clocks = clocks();
        let status = Status::new(&self.reconciler, service.problems(), clocks);
        service.status(&status.reason);
        let _ = self.former_boot.take_if(|_| status.lease.is_some());
        self.statuses.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        self.write_files(clocks.boottime);
    }

    /// Writes the files. Answers messages in between, as each file takes a while.
    fn write_files(&mut self, now: Instant) {
        let status = self.statuses.borrow();
        let files = [
            ("ledger.json", self.host.history.take_changes()),
            ("state.json", Some(state_file::encode(&status))),
            (
                "resolv.conf",
                Some(resolv_conf::render(&status).into_bytes()),
            ),
            ("interfaces", Some(interfaces::render(&status).into_bytes())),
            (
                "timesyncd.conf",
                timesyncd::render(&status).map(String::into_bytes),
            ),
        ];
        drop(status);
        for (name, content) in files {
            if let Some(content) = content {
                self.step_due |= self.reconciler.take_received(&mut self.host);
                self.files.write(now, name, content);
            }
        }
    }

    /// Returns free memory to the kernel a while after the start, and after many links appeared or
    /// disappeared: the heap has grown with them.
    fn trim(&mut self, now: Instant) {
        let links = self.reconciler.observed().links.len();
        if links.abs_diff(self.links) >= MANY_LINKS {
            self.links = links;
            self.trim_at = Some(now.saturating_add(TRIM_DELAY));
        }
        if self.trim_at.take_if(|at| *at <= now).is_some() {
            heap::trim();
        }
    }
}

/// The host that netd runs on.
struct Host {
    kernel: Rtnetlink,
    sockets: Sockets,
    history: History,
}

impl Kernel for Host {
    type Error = KernelError;

    fn now(&self) -> Instant {
        self.kernel.now()
    }

    async fn observe(&mut self) -> Result<Observed, KernelError> {
        self.kernel.observe().await
    }

    fn has_link(&self, link: &Link) -> bool {
        self.kernel.has_link(link)
    }

    async fn apply(&mut self, op: &Op, observed: &Observed) -> Result<(), KernelError> {
        self.kernel.apply(op, observed).await
    }
}

impl Network for Host {
    fn received(&mut self) -> Option<Incoming> {
        self.sockets.try_receive()
    }

    fn listen(&mut self, listeners: &[(LinkIndex, Listen)]) {
        for (client, error) in self.sockets.listen(listeners) {
            tracing::debug!(client = client.get(), %error, "cannot listen");
        }
    }

    fn transmit(&mut self, nic: &Candidate, transmit: &Transmit) {
        let usec = clocks().realtime_usec();
        self.history.sent(usec, nic.name.as_str(), transmit);
        if let Err(error) = self.sockets.send(nic.index, transmit) {
            tracing::debug!(client = nic.index.get(), %error, "cannot send {}", transmit.kind);
        }
    }

    fn send_arp(&mut self, nic: &Candidate, link: LinkIndex, packet: &arp::Packet) {
        if let Err(error) = self.sockets.send_arp(link, packet) {
            tracing::debug!(client = nic.index.get(), %error, "cannot send ARP");
        }
    }

    fn ask_gateway(&mut self, nic: &Candidate, link: LinkIndex, request: &gateway::Request) {
        if let Err(error) = self.sockets.ask_gateway(link, request) {
            tracing::debug!(client = nic.index.get(), %error, "cannot ask the gateway");
        }
    }

    fn record(&mut self, nic: &Candidate, event: &Event) {
        let usec = clocks().realtime_usec();
        self.history.event(usec, nic.name.as_str(), event);
        messages::client_event(nic, event);
    }

    fn report(&mut self, nic: &Candidate, address: Ipv4Addr, report: Report) {
        let usec = clocks().realtime_usec();
        self.history
            .report(usec, nic.name.as_str(), address, report);
        messages::report(nic, address, report);
    }

    fn record_gone(&mut self, nic: &Candidate, lease: &Lease) {
        let usec = clocks().realtime_usec();
        self.history.gone(usec, nic.name.as_str(), lease);
        messages::gone(nic, lease);
    }

    fn notify(&mut self, nic: &Candidate, notice: &Notice) {
        let usec = clocks().realtime_usec();
        self.history.notice(usec, nic.name.as_str(), notice);
        messages::notice(nic, notice);
    }
}

fn clocks() -> Clocks {
    let realtime = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Clocks {
        boottime: clock::now(),
        realtime,
    }
}
