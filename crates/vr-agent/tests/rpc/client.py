"""Drives the published client: python client.py PORT USER PASSWORD RUNNING_PROC OTHER_RUNNING_PROC"""

import json
import logging
import sys
import xmlrpc.client

from vr.common.models import Host, Proc, ProcData, ProcError

logging.disable(logging.CRITICAL)
port, user, password, web, worker = sys.argv[1:]
host = Host("127.0.0.1", int(port), supervisor_username=user, supervisor_password=password)


def fault_of(call, *args):
    try:
        call(*args)
    except xmlrpc.client.Fault as fault:
        return fault.faultCode, fault.faultString
    raise AssertionError("no fault")


procs = sorted(host.get_procs(), key=lambda proc: proc.name)
assert all(isinstance(proc, Proc) for proc in procs)

proc = host.get_proc(worker)
first_pid = proc.pid
assert proc.statename == "RUNNING" and first_pid > 0 and proc.start_time < proc.now
assert proc.as_node() == "127.0.0.1:5002" and proc.shortname() == "demo-v1-worker"

proc.stop()
stopped = host.get_proc(worker)
assert stopped.statename == "STOPPED" and stopped.pid == 0 and stopped.stop_time >= stopped.start_time
assert fault_of(proc.stop) == (70, "NOT_RUNNING: " + worker)
proc.start()
started = host.get_proc(worker)
assert started.statename == "RUNNING" and started.pid not in (0, first_pid)
assert fault_of(proc.start) == (60, "ALREADY_STARTED: " + worker)
proc.restart()
restarted = host.get_proc(worker)
assert restarted.statename == "RUNNING" and restarted.pid not in (0, started.pid)

try:
    host.get_proc("nope")
    raise AssertionError("there is no such proc")
except ProcError:
    pass
assert fault_of(host.supervisor.startProcess, "nope") == (10, "BAD_NAME: nope")

# The namespace of vr.agent's plugin.
settings = host.get_proc(web).settings
assert isinstance(settings, ProcData) and settings.port == 5001
assert host.rpc.vr.get_velociraptor_info("nope") == {}
both = host.rpc.vr.get_proc_info(web)
assert sorted(both) == ["supervisor", "velociraptor"]
assert both["supervisor"]["name"] == web and both["velociraptor"]["cmd"] == "sleep 98765"
everything = host.rpc.vr.get_all_procs_info()
assert [each["supervisor"]["name"] for each in everything] == [web, worker]

# Wrong passwords look like a host that is away.
assert Host("127.0.0.1", int(port), supervisor_username=user, supervisor_password="no").get_procs() == []

print(json.dumps({
    "names": [proc.name for proc in procs],
    "web": procs[0].as_dict(),
    "last pid": restarted.pid,
    "settings": settings.as_dict(),
}))
