"""Replays one schedule and prints its trace."""
import argparse, sys, time
from scheduler.simulator.faults.schedule import Rig
import structlog, logging
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
p=argparse.ArgumentParser(); p.add_argument("--seed",type=int,default=1); p.add_argument("--steps",type=int,default=200); p.add_argument("--count",type=int,default=1)
o=p.parse_args()
rig=Rig()
rig.play(0)
t=time.process_time()
for s in range(o.seed,o.seed+o.count):
    r=rig.play(s,o.steps)
    if o.count==1: print("\n".join(r.trace))
    print(s,r.steps,r.invariant,r.message,r.fired.total(),round(r.settled_s),r.digest[:8])
print((time.process_time()-t)/o.count*1000,"ms")
