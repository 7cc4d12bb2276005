import { setTimeout as sleep } from 'node:timers/promises';
import type { KeptCheckpoint, TakenCheckpoint } from '@holdfast/contracts';
import type { ChunkRef } from './format.ts';
import type { PackStore } from './packer.ts';
import { isFresh, restoreRoots, treesOf, UNFINISHED } from './restore.ts';
import { type ChangedFile, type Children, OpenFile, Scan, type ScanLimits, TICK_MS } from './scan.ts';
import { type RootState, Writer, type WriterState } from './writer.ts';

/** The sandbox's other processes stand still for no longer than this. */
const STOPPED_MS = 500;
/** So much is read while they do; the rest is read afterwards, each file in itself as it was at one moment. */
const STOPPED_BYTES = 64 * 1024 * 1024;
/** A pack that holds so little of use is emptied, and so are small ones when they are many. */
const LIVE_SHARE = 1 / 4;
const SMALL_PACK_BYTES = 1024 * 1024;
const MANY_PACKS = 64;
/** Of the restore itself, and of no session. */
const MARKERS = [`workspace/${UNFINISHED}`, `home/${UNFINISHED}`];

export interface TakeOptions {
  readonly exclude: readonly string[];
  readonly limits: ScanLimits;
  /** The newest that is kept. */
  readonly base: KeptCheckpoint | null;
}

export interface CheckpointsOptions {
  /** Makes the folders that the runner itself has in them, which a restore may not have brought. */
  readonly furnish: () => void;
  readonly roots: Readonly<Record<RootName, string>>;
  /** Stops everything else in the sandbox; what it returns lets it go on, and is called in any case. */
  readonly stopOthers: () => () => void;
}

type RootName = keyof KeptCheckpoint['roots'];
interface State extends WriterState {
  readonly id: string;
  readonly roots: Readonly<Partial<Record<RootName, RootState>>>;
  readonly packs: ReadonlyMap<string, number>;
}

/**
 * Takes checkpoints of the sandbox's folders and puts them back. It remembers the last one that was kept, so that what has
 * not changed since is neither read nor handed over again. One at a time.
 */
export class Checkpoints {
  readonly #options: CheckpointsOptions;
  #known: State | null = null;
  #pending: Omit<State, 'id'> | null = null;

  constructor(options: CheckpointsOptions) {
    this.#options = options;
  }

  /** @throws OverLimit when there is more than the limits allow; Error when packs cannot be handed over */
  async take({ exclude, limits, base }: TakeOptions, store: PackStore): Promise<TakenCheckpoint> {
    this.#pending = null;
    // One that cannot be read is no reason to keep nothing: all is kept anew.
    if (base?.id !== this.#known?.id)
      this.#known =
        base === null
          ? null
          : await treesOf(base.roots, store).then(
              (trees) => stateOf(base, trees),
              () => null,
            );
    const known = this.#known;
    const beganMs = performance.now();
    const { scan, found, stoppedMs } = this.#look(new Set([...exclude, ...MARKERS]), limits);
    const work = new Writer(store, known, scan);
    for (const file of scan.changed) await work.read(file);
    await work.data.close();
    const workspace = await work.folder(found.workspace, known?.roots.workspace);
    const home = await work.folder(found.home, known?.roots.home);
    const roots = { workspace, home };
    await work.trees.close();
    const live = liveOf(roots);
    const sizes = new Map([...(known?.packs ?? []), ...work.packs]);
    const packs = new Map([...live.bytes.keys()].map((digest) => [digest, sizes.get(digest) ?? 0]));
    const same =
      known !== null && known.roots.workspace?.tree === workspace.tree && known.roots.home?.tree === home.tree;
    this.#pending = { roots, index: live.index, packs, poor: poorPacks(packs, live.bytes) };
    return {
      roots: same ? null : { workspace: workspace.tree, home: home.tree },
      packs: [...packs].map(([digest, bytes]) => ({ digest, bytes })),
      figures: {
        entries: scan.entries,
        bytes: scan.bytes,
        changed_files: work.changed,
        new_bytes: work.data.bytes + work.trees.bytes,
        took_ms: Math.round(performance.now() - beganMs),
        stopped_ms: Math.round(stoppedMs),
        skipped: scan.skipped,
        unreadable: scan.unreadableCount,
        torn: work.torn,
      },
      unreadable: scan.unreadable,
    };
  }

  /** What was taken last is kept under this id; null = it is not, and the one before stands. */
  settle(id: string | null): void {
    if (id !== null && this.#pending !== null) this.#known = { id, ...this.#pending };
    // What was found out about files is worth keeping only together with where their contents are.
    this.#pending = null;
  }

  /**
   * Puts a checkpoint's files into those folders where there are none, and says whether there were none in any.
   * @throws Error when it cannot; then there are none
   */
  async restore(kept: KeptCheckpoint | null, store: PackStore): Promise<{ fresh: boolean; restored: boolean }> {
    const all = Object.entries(this.#options.roots) as [RootName, string][];
    const empty = all.filter(([, path]) => isFresh(path));
    const fresh = empty.length === all.length;
    const wanted = empty.flatMap(([name, path]) => {
      const tree = kept?.roots[name];
      return tree === undefined ? [] : [{ name, path, tree }];
    });
    if (kept === null || wanted.length === 0) return { fresh, restored: false };
    const roots = await restoreRoots(wanted, store);
    this.#options.furnish();
    // From here on a change of a file shows in its times.
    await sleep(TICK_MS);
    this.#known = fresh ? stateOf(kept, roots) : null;
    return { fresh, restored: true };
  }

  /** Everything is looked at, and changed files are read as far as it goes, while nothing else in the sandbox runs. */
  #look(exclude: ReadonlySet<string>, limits: ScanLimits) {
    const known = this.#known;
    const poor = known?.poor ?? new Set();
    const deadlineMs = performance.now() + STOPPED_MS;
    const beganMs = performance.now();
    let stoppedMs = 0;
    let goOn: (() => void) | null = this.#options.stopOthers();
    const release = (): void => {
      goOn?.();
      if (goOn !== null) stoppedMs = performance.now() - beganMs;
      goOn = null;
    };
    try {
      const scan = new Scan({
        exclude,
        limits,
        stale: ({ chunks }) => poor.size > 0 && chunks.some((chunk) => chunk !== null && poor.has(chunk.pack)),
        onEntry: () => {
          if (goOn !== null && performance.now() > deadlineMs) release();
        },
      });
      const { roots } = this.#options;
      const found = {
        workspace: scan.folder('workspace', roots.workspace, known?.roots.workspace?.children),
        home: scan.folder('home', roots.home, known?.roots.home?.children),
      };
      let room = STOPPED_BYTES;
      // Files that make sense only together come first.
      for (const file of scan.changed.sort((a, b) => Number(b.database) - Number(a.database))) {
        if (performance.now() > deadlineMs) break;
        if (file.size > room) continue;
        room -= file.size;
        readWhole(file, scan);
      }
      release();
      return { scan, found, stoppedMs };
    } finally {
      release();
    }
  }
}

function readWhole(file: ChangedFile, scan: Scan): void {
  let open: OpenFile | null = null;
  try {
    open = new OpenFile(file.path);
    const chunks = [...open.chunks()];
    file.content = { ...open.facts(), chunks };
  } catch (error) {
    file.content = 'failed';
    scan.cannot(file.path, error);
  } finally {
    open?.close();
  }
}

/** What is alive in which pack, and where each chunk is. */
function liveOf(roots: State['roots']): { bytes: Map<string, number>; index: Map<string, ChunkRef> } {
  const bytes = new Map<string, number>();
  const index = new Map<string, ChunkRef>();
  const count = (ref: ChunkRef): void => {
    bytes.set(ref.pack, (bytes.get(ref.pack) ?? 0) + ref.bytes);
  };
  const visit = (children: Children): void => {
    for (const { entry, children: below } of children.values()) {
      if (entry.type === 'folder') {
        count(entry.tree);
        if (below !== undefined) visit(below);
      } else if (entry.type === 'file') {
        for (const chunk of entry.chunks) {
          if (chunk === null || index.has(chunk.digest)) continue;
          index.set(chunk.digest, chunk);
          count(chunk);
        }
      }
    }
  };
  for (const { tree, children } of Object.values(roots)) {
    count(tree);
    visit(children);
  }
  return { bytes, index };
}

/** Packs whose contents go into new ones with the next checkpoint, so that a restore reads few, and little in vain. */
export function poorPacks(packs: ReadonlyMap<string, number>, live: ReadonlyMap<string, number>): Set<string> {
  const small = [...packs].filter(([, bytes]) => bytes < SMALL_PACK_BYTES).map(([digest]) => digest);
  const poor = new Set(small.length > MANY_PACKS ? small : []);
  for (const [digest, bytes] of packs)
    if (bytes >= SMALL_PACK_BYTES && (live.get(digest) ?? 0) < bytes * LIVE_SHARE) poor.add(digest);
  return poor;
}

function stateOf({ id, packs }: KeptCheckpoint, roots: State['roots']): State {
  const sizes = new Map(packs.map(({ digest, bytes }) => [digest, bytes]));
  const live = liveOf(roots);
  return { id, roots, index: live.index, packs: sizes, poor: poorPacks(sizes, live.bytes) };
}
