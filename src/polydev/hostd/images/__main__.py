"""Builds images by hand while the rest is being put together."""
import asyncio, sys
from pathlib import Path
from polydev.hostd.images import ImageStore
s=ImageStore(Path(sys.argv[2] if len(sys.argv)>2 else "/var/cache/polydev/golden-images"))
i=asyncio.run(s.build(sys.argv[1], lambda p: print(f"{p.elapsed_s:6.1f} {p.kind} {p.stage} {p.fraction}",flush=True)))
print(i.name, i.versions, i.size)
