//! Metrics of the process, with the names that Prometheus' client libraries share: see
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.
//!
//! `prometheus` has them only with a second version of `rustix`, so they are read here. Those from `/proc` stay 0 on
//! systems without it.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Registry};

use super::{Gauge, register};

#[derive(Debug)]
pub(super) struct ProcessMetrics {
    registry: Registry,
    cpu: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    virtual_memory: Gauge,
    resident_memory: Gauge,
    threads: Gauge,
    start_time: Gauge,
}

impl ProcessMetrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name, help| register(&registry, Gauge::new(name, help));
        ProcessMetrics {
            cpu: register(
                &registry,
                Counter::new(
                    "process_cpu_seconds_total",
                    "Total user and system CPU time spent in seconds.",
                ),
            ),
            open_fds: gauge("process_open_fds", "Number of open file descriptors."),
            max_fds: gauge(
                "process_max_fds",
                "Maximum number of open file descriptors.",
            ),
            virtual_memory: gauge(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            ),
            resident_memory: gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            ),
            threads: gauge("process_threads", "Number of OS threads in the process."),
            start_time: gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            ),
            registry,
        }
    }

    /// Reads the current values.
    pub fn gather(&self) -> Vec<MetricFamily> {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let micros = (usage.user_time() + usage.system_time()).num_microseconds();
            let total = micros as f64 / 1e6;
            self.cpu.inc_by((total - self.cpu.get()).max(0.0));
        }
        if let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.max_fds.set(limit as f64);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The folder that is being read is one of them.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        self.read_stat();
        self.registry.gather()
    }

    /// Reads `/proc/self/stat` as `proc(5)` describes it.
    fn read_stat(&self) -> Option<()> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program before it may contain spaces and parentheses. The next field is the third.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let system = |variable| Some(sysconf(variable).ok()?? as f64);
        self.threads.set(field(20)?);
        self.virtual_memory.set(field(23)?);
        self.resident_memory
            .set(field(24)? * system(SysconfVar::PAGE_SIZE)?);
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let ticks = system(SysconfVar::CLK_TCK)?;
        self.start_time
            .set(boot.parse::<f64>().ok()? + field(22)? / ticks);
        Some(())
    }
}
