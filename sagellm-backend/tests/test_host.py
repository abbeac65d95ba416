"""What the host and its cgroups leave to a process, read from trees laid out as kernels lay them out."""

from __future__ import annotations

import os

import pytest

from sagellm_backend import host

GIB = 1 << 30
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 25165824 kB\n"


def write(root, files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def test_without_a_limit_the_hosts_memory_counts(tmp_path):
    info = host.memory_info(write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"}))
    assert (info.total_bytes, info.free_bytes) == (32 * GIB, 24 * GIB)


def test_the_tightest_cgroup_above_the_process_decides_in_version_2(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": f"{GIB}\n",
        },
    )
    info = host.memory_info(tmp_path)
    assert (info.total_bytes, info.free_bytes) == (4 * GIB, 2 * GIB)


def test_version_1_is_read_and_its_huge_number_is_no_limit(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{5 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {2 * GIB}\n",
        },
    )
    info = host.memory_info(tmp_path)
    assert (info.total_bytes, info.free_bytes) == (8 * GIB, 5 * GIB)


def test_use_above_the_limit_leaves_nothing_rather_than_less(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "100\n",
            "sys/fs/cgroup/memory.current": "200\n",
        },
    )
    assert host.memory_info(tmp_path).free_bytes == 0


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/cpu.max": "max 100000\n"}, 99),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            99,
        ),
    ],
)
def test_cores_are_affinity_cut_down_by_quota(tmp_path, files, share, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)), raising=False)
    assert host.usable_cores(write(tmp_path, files)) == share


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 2), (16, 15)])
def test_one_core_of_more_than_two_is_left_to_what_serves(tmp_path, cores, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert host.compute_threads(tmp_path) == threads


def test_the_device_names_its_model_and_what_kernels_may_use(tmp_path):
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name : Zen 5\nflags : fpu avx2 avx512_bf16 other\n",
            "proc/meminfo": MEMINFO,
        },
    )
    device = host.cpu_device(tmp_path)
    assert device.kind == "cpu"
    assert device.name == "Zen 5"
    assert device.instruction_sets == ("avx2", "avx512_bf16")
    assert device.memory_free_bytes == 24 * GIB


def test_this_host_has_memory_and_cores():
    device = host.cpu_device()
    assert device.cores >= 1
    assert 0 < device.memory_free_bytes <= device.memory_total_bytes
