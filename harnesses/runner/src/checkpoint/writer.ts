import { setImmediate } from 'node:timers/promises';
import { type ChunkRef, type Entry, encodeTree, type FileEntry, type FolderEntry, MAX_TREE_BYTES } from './format.ts';
import { digestOf, Packer, type PackStore } from './packer.ts';
import {
  type ChangedFile,
  type Children,
  type ContentFacts,
  type FoundFolder,
  type Known,
  OpenFile,
  type Scan,
} from './scan.ts';

const READ_TRIES = 3;
/** Hashed before others get their turn. */
const TURN_BYTES = 4 * 1024 * 1024;

export interface RootState {
  readonly tree: ChunkRef;
  readonly children: Children;
}
export interface WriterState {
  /** Where the chunks are that need not be handed over again. */
  readonly index: ReadonlyMap<string, ChunkRef>;
  /** Packs that are to be emptied. */
  readonly poor: ReadonlySet<string>;
}

/** One checkpoint in the making: what changed becomes chunks, and the folders above it become trees. */
export class Writer {
  readonly data: Packer;
  readonly trees: Packer;
  /** Packs that were handed over, with their sizes. */
  readonly packs = new Map<string, number>();
  changed = 0;
  torn = 0;
  readonly #state: WriterState | null;
  readonly #scan: Scan;
  readonly #fresh = new Map<string, ChunkRef>();
  readonly #files = new Map<ChangedFile, Known>();
  #sinceTurn = 0;

  constructor(packs: PackStore, state: WriterState | null, scan: Scan) {
    this.#state = state;
    this.#scan = scan;
    const handOver: PackStore['put'] = (pack) => {
      this.packs.set(pack.digest, pack.bytes.length);
      return packs.put(pack);
    };
    this.data = new Packer(handOver);
    this.trees = new Packer(handOver);
  }

  /** Takes a file in; one that cannot be read is told to the scan. One that is written to is read again, three times at most. */
  async read(file: ChangedFile): Promise<void> {
    const { content } = file;
    if (content === 'failed') return;
    if (content !== null) {
      this.#settle(file, content, await this.#chunks(content.chunks));
      file.content = null;
      return;
    }
    for (let tries = 1; ; tries++) {
      let open: OpenFile | null = null;
      try {
        open = new OpenFile(file.path);
        const chunks = await this.#chunks(open.chunks());
        const facts = open.facts();
        if (facts.torn && tries < READ_TRIES) continue;
        this.#settle(file, facts, chunks);
      } catch (error) {
        if (error instanceof PutFault) throw error;
        this.#scan.cannot(file.path, error);
      } finally {
        open?.close();
      }
      return;
    }
  }

  /** A folder's state, with the tree that it had when nothing in it is another. Files must have been read. */
  async folder(found: FoundFolder['children'], before: RootState | undefined): Promise<RootState> {
    const children = new Map<string, Known>();
    let same = before !== undefined && this.#state?.poor.has(before.tree.pack) !== true;
    for (const [name, one] of found) {
      const known = 'kind' in one ? await this.#known(one) : one;
      if (known === undefined) continue;
      children.set(name, known);
      same &&= before?.children.get(name)?.entry === known.entry;
    }
    if (same && before?.children.size === children.size) return { tree: before.tree, children };
    return { tree: await this.#tree([...children.values()].map(({ entry }) => entry)), children };
  }

  async #known(one: ChangedFile | FoundFolder): Promise<Known | undefined> {
    if (one.kind === 'file') return this.#files.get(one);
    const { name, mode, changedUs, before } = one;
    const entry = before?.entry.type === 'folder' ? before.entry : undefined;
    const known = entry && before?.children && { tree: entry.tree, children: before.children };
    const { tree, children } = await this.folder(one.children, known);
    const same = entry?.tree === tree && entry.mode === mode && entry.changedUs === changedUs;
    return {
      entry: same ? entry : ({ type: 'folder', name, mode, changedUs, tree } satisfies FolderEntry),
      stamp: null,
      children,
    };
  }

  #settle(file: ChangedFile, facts: ContentFacts, chunks: FileEntry['chunks']): void {
    const { name, before } = file;
    const { mode, changedUs, size, stamp } = facts;
    const entry: FileEntry = { type: 'file', name, mode, changedUs, size, chunks };
    const same = before?.entry.type === 'file' && sameFile(before.entry, entry);
    this.#files.set(file, { entry: same ? before.entry : entry, stamp });
    if (!same) this.changed += 1;
    if (facts.torn) this.torn += 1;
  }

  async #chunks(all: Iterable<Buffer | null>): Promise<(ChunkRef | null)[]> {
    const refs: (ChunkRef | null)[] = [];
    for (const bytes of all) refs.push(bytes === null ? null : await this.#chunk(bytes));
    return refs;
  }

  async #chunk(bytes: Buffer): Promise<ChunkRef> {
    this.#sinceTurn += bytes.length;
    if (this.#sinceTurn > TURN_BYTES) {
      this.#sinceTurn = 0;
      await setImmediate();
    }
    const digest = digestOf(bytes);
    const known = this.#state?.index.get(digest);
    const ref = known !== undefined && this.#state?.poor.has(known.pack) !== true ? known : this.#fresh.get(digest);
    if (ref !== undefined) return ref;
    if (!this.data.fits(bytes.length)) await put(this.data.close());
    const fresh = this.data.add(bytes, digest);
    this.#fresh.set(digest, fresh);
    return fresh;
  }

  async #tree(entries: readonly Entry[]): Promise<ChunkRef> {
    // Only while the pack is open may an entry mean "the same pack"; whether it stays open depends on the length.
    let bytes = encodeTree(entries);
    if (!this.trees.fits(bytes.length)) {
      await put(this.trees.close());
      bytes = encodeTree(entries);
    }
    if (bytes.length > MAX_TREE_BYTES) throw new Error('A folder has more files than a checkpoint can name.');
    return this.trees.add(bytes, digestOf(bytes));
  }
}

/** Packs cannot be handed over: no fault of any file. */
class PutFault extends Error {}
async function put(handed: Promise<void>): Promise<void> {
  await handed.catch((cause: unknown) => {
    throw new PutFault('A pack could not be handed over.', { cause });
  });
}

function sameFile(one: FileEntry, other: FileEntry): boolean {
  return (
    one.mode === other.mode &&
    one.changedUs === other.changedUs &&
    one.size === other.size &&
    // A chunk that was moved to another pack is another place.
    one.chunks.every((chunk, i) => chunk === other.chunks[i] || sameChunk(chunk, other.chunks[i]))
  );
}
function sameChunk(one: ChunkRef | null, other: ChunkRef | null | undefined): boolean {
  return one !== null && other != null && one.digest === other.digest && one.pack === other.pack;
}
