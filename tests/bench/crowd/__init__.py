"""A swarm of thousands in one process, to see what a node pays in it (`python -m tests.bench.scale`).

What decides is the code that the exchange runs: the partial view (`PeerTable`), whom to follow (`Seats`, `Uses`,
`Attempts`), levels, shards and sizes (`swarm.net.shards`), what a replica keeps (`RecordStorage`), how many peers a
lookup asks (`nearest`), whose turn it is (`Shares`), what is passed on and asked for (`Shelf`, `Wishes`, `Asked`),
where a reader starts (`first_cursor`), the table of checks (`swarm.verify.CHECKS`) and what follows (`Standing`).

What moves bytes is replaced: coroutines and streams by callbacks on a heap of times (`world`), the DHT's routing by a
sorted list of who is alive (`keys`). Faked at the edge: nothing is signed or decoded, a record's value is its author's
name, a body has the right length and no content, a lookup costs what some real ones among so many peers did. Nobody
scores anything: what there was to learn from a group is drawn by lot. All clocks are right, uploads have no limit but
that on streams, places are reviewed every five seconds, and a reader's queue is never full.

A message is lost with a probability of 5 %: a request of the DHT is then without an answer; a stream breaks, and its
reader opens another after a while. Ten percent of the nodes are hostile (`hostile`). Half of all are replaced in an
hour.
"""
