//! Hosts in network namespaces on bridges: real kernels' networking, several machines on one.
//!
//! A [`Net`] is a switch: a namespace of its own that holds one bridge a [`Lan`], so that nothing shows in the machine's
//! own namespace. A [`Host`] is a namespace with loopback up, and a veth pair to every LAN it is attached to. Host *n*
//! has 10.83.*k*.*n*/24 and fd83:*k*::*n*/64 on LAN *k*, beside its link-local address, all usable at once (no duplicate
//! address detection). Everything goes when the `Net` is dropped, and what a killed run left behind goes with the next.
//!
//! In a test binary with `harness = false`, `main` calls [`permitted`] first and makes its trials with [`trial`]:
//! where namespaces are not to be had, each is reported as ignored, with the reason.
//! Processes that a test starts in a host must be dropped before the `Net`; declare it first.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Trial};

/// Set for the copy of the program that runs in a user namespace, so that it does not try again.
const INSIDE: &str = "OLLANA_TEST_NETNS";
/// What the names of our namespaces begin with; the process ID follows.
const PREFIX: &str = "ollana-";

/// Whether this process may make network namespaces, and if not, why. Without being root it tries a user namespace: then
/// this function does not return, and the program starts anew from `main` as root of that namespace.
pub fn permitted() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("network namespaces exist on Linux only".to_owned());
    }
    if !works("ip", &["-V"]) {
        return Err("the command `ip` (iproute2) is missing".to_owned());
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    if root {
        let probe = format!("{PREFIX}{}-probe", std::process::id());
        let made = output(Command::new("ip").args(["netns", "add", &probe]));
        let _ = output(Command::new("ip").args(["netns", "del", &probe]));
        return made.map(drop).map_err(|error| format!("root may not make network namespaces here: {error}"));
    }
    if std::env::var_os(INSIDE).is_some() {
        return Err("the user namespace gives no root".to_owned());
    }
    if !works("unshare", &["-rnm", "true"]) {
        return Err("neither root nor allowed to make user namespaces (`unshare -rnm true` fails)".to_owned());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let error = Command::new("unshare")
        .args(["-rnm", "sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("cannot run `unshare`: {error}"))
}

/// Whether packet filters can be set, and if not, why.
pub fn nft_permitted() -> Result<(), String> {
    if works("nft", &["--version"]) { Ok(()) } else { Err("the command `nft` (nftables) is missing".to_owned()) }
}

/// A trial that is ignored, with the reason, where `permitted` says no.
pub fn trial(name: &str, permitted: Result<(), String>, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || match permitted {
        Ok(()) => {
            test();
            Ok(Completion::Completed)
        }
        Err(reason) => Ok(Completion::ignored_with(reason)),
    })
}

/// A switch with bridges, and the hosts on them.
#[derive(Debug)]
pub struct Net {
    switch: String,
    namespaces: Mutex<Vec<String>>,
    lans: AtomicU8,
    hosts: AtomicU8,
}

/// One bridge of a [`Net`]: what is attached to it shares a link.
#[derive(Debug, Clone)]
pub struct Lan {
    number: u8,
    switch: String,
    bridge: String,
}

/// A machine of a [`Net`].
#[derive(Debug)]
pub struct Host {
    /// What it was called when it was made.
    pub name: String,
    namespace: String,
    number: u8,
    interfaces: AtomicU8,
}

/// A runtime in a [`Host`].
#[derive(Debug)]
pub struct Inside(tokio::runtime::Runtime);

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Running(Child);

// === impl Net ===

impl Net {
    /// A switch without a LAN.
    pub fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let switch = format!("{PREFIX}{}-{n}", std::process::id());
        let net = Self {
            switch: switch.clone(),
            namespaces: Mutex::default(),
            lans: AtomicU8::new(0),
            hosts: AtomicU8::new(0),
        };
        net.add_namespace(&switch);
        // The switch is no host: without addresses it says nothing of its own.
        sysctl(&switch, "net.ipv6.conf.all.disable_ipv6", "1");
        sysctl(&switch, "net.ipv6.conf.default.disable_ipv6", "1");
        net
    }

    /// A switch with one LAN.
    pub fn new() -> (Self, Lan) {
        let net = Self::empty();
        let lan = net.add_lan();
        (net, lan)
    }

    /// One more LAN, apart from the others.
    pub fn add_lan(&self) -> Lan {
        let number = self.lans.fetch_add(1, Ordering::Relaxed);
        let bridge = format!("br{number}");
        ip(&self.switch, &["link", "add", &bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
        ip(&self.switch, &["link", "set", &bridge, "up"]);
        Lan { number, switch: self.switch.clone(), bridge }
    }

    /// A host with nothing but loopback.
    pub fn bare_host(&self, name: &str) -> Host {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        let namespace = format!("{}-{name}", self.switch);
        self.add_namespace(&namespace);
        for scope in ["all", "default"] {
            sysctl(&namespace, &format!("net.ipv6.conf.{scope}.accept_dad"), "0");
            // Otherwise a link that goes down loses its IPv6 addresses, as configured machines set them again.
            sysctl(&namespace, &format!("net.ipv6.conf.{scope}.keep_addr_on_down"), "1");
        }
        ip(&namespace, &["link", "set", "lo", "up"]);
        Host { name: name.to_owned(), namespace, number, interfaces: AtomicU8::new(0) }
    }

    /// A host on `lan`, with IPv4 and IPv6.
    pub fn host(&self, name: &str, lan: &Lan) -> Host {
        let host = self.bare_host(name);
        host.attach(lan);
        host
    }

    fn add_namespace(&self, name: &str) {
        expect(Command::new("ip").args(["netns", "add", name]));
        self.namespaces.lock().unwrap().push(name.to_owned());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.namespaces.lock().unwrap().iter() {
            let _ = output(Command::new("ip").args(["netns", "del", name]));
        }
    }
}

// === impl Lan ===

impl Lan {
    /// Nothing gets across any more, and no host can tell from its own interface.
    pub fn cut(&self) {
        ip(&self.switch, &["link", "set", &self.bridge, "down"]);
    }

    /// Undoes [`Lan::cut`].
    pub fn join(&self) {
        ip(&self.switch, &["link", "set", &self.bridge, "up"]);
    }
}

// === impl Host ===

impl Host {
    /// A cable to `lan`, with an IPv4 and an IPv6 address. Returns the interface's name: `eth0`, `eth1`, ….
    pub fn attach(&self, lan: &Lan) -> String {
        let interface = self.attach_bare(lan);
        let (v4, v6) = (self.v4(lan), self.v6(lan));
        ip(&self.namespace, &["addr", "add", &format!("{v4}/24"), "brd", "+", "dev", &interface]);
        ip(&self.namespace, &["addr", "add", &format!("{v6}/64"), "dev", &interface, "nodad"]);
        interface
    }

    /// A cable to `lan`, with no other address than the link-local one.
    pub fn attach_bare(&self, lan: &Lan) -> String {
        let interface = format!("eth{}", self.interfaces.fetch_add(1, Ordering::Relaxed));
        let port = self.port(&interface);
        let pair = ["link", "add", &interface, "type", "veth", "peer", "name", &port, "netns", &lan.switch];
        ip(&self.namespace, &pair);
        ip(&lan.switch, &["link", "set", &port, "master", &lan.bridge, "up"]);
        ip(&self.namespace, &["link", "set", &interface, "up"]);
        interface
    }

    /// A cable to another host, without a switch between them: an interface of this name on each, without an address but
    /// the link-local one.
    pub fn cable(&self, other: &Self, interface: &str) {
        let peer = ["peer", "name", interface, "netns", &other.namespace];
        ip(&self.namespace, &[&["link", "add", interface, "type", "veth"], &peer[..]].concat());
        self.link_up(interface);
        other.link_up(interface);
    }

    /// Its IPv4 address on `lan`, unless it was changed.
    pub fn v4(&self, lan: &Lan) -> Ipv4Addr {
        Ipv4Addr::new(10, 83, lan.number, self.number)
    }

    /// Its IPv6 address on `lan`, unless it was changed.
    pub fn v6(&self, lan: &Lan) -> Ipv6Addr {
        Ipv6Addr::new(0xfd83, lan.number.into(), 0, 0, 0, 0, 0, self.number.into())
    }

    /// Takes all addresses of an interface away (of IPv6 the link-local one too) and gives it these, each with its
    /// prefix length: `10.83.0.200/24`.
    pub fn set_addresses(&self, interface: &str, addresses: &[&str]) {
        ip(&self.namespace, &["addr", "flush", "dev", interface]);
        for address in addresses {
            self.add_address(interface, address);
        }
    }

    /// One more address, with its prefix length.
    pub fn add_address(&self, interface: &str, address: &str) {
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        ip(&self.namespace, &[&["addr", "add", address, "dev", interface], nodad].concat());
    }

    /// Switches an interface off, as `ip link set … down` does on a real machine.
    pub fn link_down(&self, interface: &str) {
        ip(&self.namespace, &["link", "set", interface, "down"]);
    }

    /// Switches it on again.
    pub fn link_up(&self, interface: &str) {
        ip(&self.namespace, &["link", "set", interface, "up"]);
    }

    /// Pulls the cable: the interface stays up, without a carrier.
    pub fn unplug(&self, lan: &Lan, interface: &str) {
        ip(&lan.switch, &["link", "set", &self.port(interface), "down"]);
    }

    /// Puts it back.
    pub fn plug(&self, lan: &Lan, interface: &str) {
        ip(&lan.switch, &["link", "set", &self.port(interface), "up"]);
    }

    /// Removes an interface for good.
    pub fn detach(&self, interface: &str) {
        ip(&self.namespace, &["link", "del", interface]);
    }

    /// Sets a kernel variable of this host.
    pub fn sysctl(&self, key: &str, value: &str) {
        sysctl(&self.namespace, key, value);
    }

    /// Adds packet filter rules, in nft's own language.
    pub fn nft(&self, rules: &str) {
        expect(self.command("nft").arg(rules));
    }

    /// Removes all packet filter rules.
    pub fn nft_flush(&self) {
        self.nft("flush ruleset");
    }

    /// Drops all discovery, in and out.
    pub fn block_multicast(&self) {
        self.nft(
            "table inet block { \
             chain in { type filter hook input priority 0; udp dport 11436 drop; }; \
             chain out { type filter hook output priority 0; udp dport 11436 drop; }; }",
        );
    }

    /// Loses this share of everything that arrives, at random.
    pub fn lose(&self, percent: u8) {
        self.nft(&format!(
            "table inet loss {{ chain in {{ type filter hook input priority 0; \
             iifname != \"lo\" numgen random mod 100 < {percent} drop; }}; }}"
        ));
    }

    /// Counts what arrives at and leaves by this UDP port from now on; see [`Host::counted`].
    pub fn count(&self, port: u16) {
        self.nft(&format!(
            "table inet count {{ counter in {{}}; counter out {{}}; \
             chain in {{ type filter hook input priority 0; udp dport {port} counter name in; }}; \
             chain out {{ type filter hook output priority 0; udp dport {port} counter name out; }}; }}"
        ));
    }

    /// Packets and bytes (of IP) in and out since [`Host::count`]. What a host sends to a group and loops back to itself
    /// counts on both sides.
    pub fn counted(&self) -> ((u64, u64), (u64, u64)) {
        let read = |name: &str| {
            let out = expect(self.command("nft").args(["list", "counter", "inet", "count", name]));
            let text = String::from_utf8(out.stdout).unwrap();
            let number = |word: &str| {
                let mut words = text.split_whitespace().skip_while(|w| *w != word);
                words.nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {word} in {text}"))
            };
            (number("packets"), number("bytes"))
        };
        (read("in"), read("out"))
    }

    /// Runs `ip` in this host; it must succeed.
    pub fn ip(&self, args: &[&str]) {
        ip(&self.namespace, args);
    }

    /// A command that will run in this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Runs a closure on a thread of its own that has moved into this host: sockets that it makes are this host's.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let door = self.door();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&door);
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A runtime whose threads are in this host: for servers and clients of the test itself.
    pub fn runtime(&self) -> Inside {
        let door = self.door();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Inside(builder.worker_threads(1).on_thread_start(move || enter(&door)).enable_all().build().unwrap())
    }

    fn door(&self) -> File {
        File::open(format!("/run/netns/{}", self.namespace)).unwrap()
    }

    /// Runs a program in this host to its end; it must succeed. Its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        String::from_utf8(expect(self.command(program).args(args)).stdout).unwrap()
    }

    /// The switch's end of an interface's cable.
    fn port(&self, interface: &str) -> String {
        format!("h{}{interface}", self.number)
    }
}

// === impl Inside ===

impl Inside {
    /// Runs a future in the host to its end.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        // The task runs in the host. Only its end is waited for here.
        let done = self.0.block_on(self.0.spawn(future));
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Lets a future run in the host until the runtime is dropped.
    pub fn start(&self, future: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        self.0.spawn(future).abort_handle()
    }
}

/// Moves this thread, and no other, into a namespace.
fn enter(door: &File) {
    rustix::thread::move_into_link_name_space(door.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
}

// === impl Running ===

impl Running {
    /// Starts a command, in a host if [`Host::command`] made it.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")))
    }

    /// Ends it as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Waits for its end, at most this long; whether it came.
    pub fn wait_for_end(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ip(namespace: &str, args: &[&str]) {
    expect(Command::new("ip").args(["-n", namespace]).args(args));
}

fn sysctl(namespace: &str, key: &str, value: &str) {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let script = format!("echo {value} > {path}");
    expect(Command::new("ip").args(["netns", "exec", namespace, "sh", "-c", &script]));
}

/// Removes the namespaces of processes that are no more.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid.filter(|pid: &u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = pid;
            let _ = output(Command::new("ip").args(["netns", "del", &name]));
        }
    }
}

fn works(program: &str, args: &[&str]) -> bool {
    output(Command::new(program).args(args)).is_ok()
}

fn expect(command: &mut Command) -> Output {
    output(command).unwrap_or_else(|error| panic!("{error}"))
}

fn output(command: &mut Command) -> Result<Output, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
