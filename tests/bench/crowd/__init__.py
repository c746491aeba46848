"""A swarm of thousands in one process, to see what a node pays in it (`python -m tests.bench.scale`).

What decides is the code that the exchange runs: the partial view (`PeerTable`), whom to follow (`Seats`, `Uses`,
`Attempts`), levels, shards and sizes (`swarm.net.shards`), what a replica keeps (`RecordStorage`), whom a record is
renewed with (`Holders`), how many peers a lookup asks (`nearest`), whose turn it is (`Shares`), what is passed on and
asked for (`Shelf`, `Wishes`, `Asked`), where a reader starts (`first_cursor`, `backlog`), the table of checks
(`swarm.verify.CHECKS`) and what follows (`Standing`).

What moves bytes is replaced, and so is `swarm.net.memory`, in which everybody follows everybody: coroutines and streams
are callbacks on a heap of times (`world`, `streams`, `turns`: what the coroutines of following, relay_reader, relaying
and streams do, in the same order), the DHT's routing is a sorted list of who is alive (`keys`): each peer knows 20
others in every bucket, as hivemind's table does when it is full. So what follows from tables that are not full, and
pings, is not in the numbers.

Faked at the edge: nothing is signed or decoded, a record's value is its author's name, a body has the right length and
no content, all groups share one, of which what cannot differ between receivers is checked once (`groups.Verdicts`); a
lookup costs what one of 200 real ones among so many peers did, and finds the nearest. Nobody scores, and there is no
pool: what there was to learn from a group is drawn by lot, and who admits one keeps it. All clocks are right, uploads
have no limit but that on streams, places are reviewed every five seconds (the exchange: every one), and a reader's
queue is never full. Python's collector of circles is off.

A message is lost with a probability of 5 %: a request of the DHT is then without an answer; a stream breaks, and its
reader opens another after a while. Ten percent of the nodes are hostile (`hostile`). Half of all are replaced in an
hour. All join in the first third of the time that is not measured, so that nobody is older than a few minutes.
"""
