/**
 * What a checkpoint is made of. File contents are cut into chunks, and each folder's list of entries (a tree) is one more
 * chunk. Chunks lie one after another in packs, without anything between them. A checkpoint is the places of its roots'
 * trees; everything else follows from there. A tree that did not change is the same chunk in the same pack, so only what
 * changed, and the trees above it, travel.
 */
export const FORMAT_VERSION = 1;
/** What one chunk holds at most; a longer file is several, so that a change within it is a small one. */
export const CHUNK_BYTES = 1024 * 1024;
/** A pack is closed before it grows beyond this. */
export const PACK_BYTES = 8 * 1024 * 1024;
/** A folder's tree is one chunk, in a pack of its own when it is longer than a pack; above this it is refused. */
export const MAX_TREE_BYTES = 16 * 1024 * 1024;

/** Where a chunk lies. Digests are SHA-256, hex. */
export interface ChunkRef {
  /** Empty while the pack is being filled, and so has no digest yet. */
  pack: string;
  readonly at: number;
  readonly bytes: number;
  readonly digest: string;
}

interface Common {
  /** One character for each byte of the name, which need not be UTF-8. */
  readonly name: string;
  /** When its content changed last, in microseconds since 1970. */
  readonly changedUs: number;
}
export interface FileEntry extends Common {
  readonly type: 'file';
  readonly mode: number;
  readonly size: number;
  /** One for each {@link CHUNK_BYTES}, the last may be shorter; null = zeros, which take no room. */
  readonly chunks: readonly (ChunkRef | null)[];
}
export interface FolderEntry extends Common {
  readonly type: 'folder';
  readonly mode: number;
  readonly tree: ChunkRef;
}
export interface LinkEntry extends Common {
  readonly type: 'link';
  /** Where it leads, byte for byte as {@link Common.name}. */
  readonly target: string;
}
export type Entry = FileEntry | FolderEntry | LinkEntry;

/** In a tree, the number of the pack that the tree itself lies in. */
const SAME_PACK = -1;
type Place = readonly [pack: number, at: number, bytes: number, digest: string];
type StoredEntry =
  | readonly ['f', name: string, changedUs: number, mode: number, size: number, chunks: readonly (Place | null)[]]
  | readonly ['d', name: string, changedUs: number, mode: number, tree: Place]
  | readonly ['l', name: string, changedUs: number, target: string];
interface StoredTree {
  readonly version: number;
  readonly packs: readonly string[];
  readonly entries: readonly StoredEntry[];
}

/**
 * A folder's list, in the order of the names. A chunk whose pack is being filled lies in the pack that this tree is put in
 * next.
 */
export function encodeTree(entries: readonly Entry[]): Buffer {
  const packs: string[] = [];
  const numbers = new Map<string, number>();
  const place = ({ pack, at, bytes, digest }: ChunkRef): Place => {
    if (pack === '') return [SAME_PACK, at, bytes, digest];
    let number = numbers.get(pack);
    if (number === undefined) {
      number = packs.push(pack) - 1;
      numbers.set(pack, number);
    }
    return [number, at, bytes, digest];
  };
  const stored = [...entries]
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map((entry): StoredEntry => {
      const { name, changedUs } = entry;
      if (entry.type === 'link') return ['l', name, changedUs, entry.target];
      if (entry.type === 'folder') return ['d', name, changedUs, entry.mode, place(entry.tree)];
      const chunks = entry.chunks.map((chunk) => (chunk === null ? null : place(chunk)));
      return ['f', name, changedUs, entry.mode, entry.size, chunks];
    });
  return Buffer.from(JSON.stringify({ version: FORMAT_VERSION, packs, entries: stored } satisfies StoredTree));
}

/**
 * The entries of a folder whose tree lies in `ownPack`. What comes back is safe to make beneath that folder: each name is one step down, and none
 * comes twice. @throws Error when the bytes are no tree of a version that this release reads
 */
export function decodeTree(bytes: Buffer, ownPack: string): Entry[] {
  if (bytes.length > MAX_TREE_BYTES) throw new Error('A folder of the checkpoint is too large.');
  const { version, packs, entries } = JSON.parse(bytes.toString()) as StoredTree;
  if (version !== FORMAT_VERSION)
    throw new Error(`The checkpoint is of version ${version}; this runner reads version 1.`);
  const names = new Set<string>();
  const chunk = ([number, at, size, digest]: Place): ChunkRef => {
    const pack = number === SAME_PACK ? ownPack : packs[number];
    const whole = [at, size].every((value) => Number.isSafeInteger(value) && value >= 0);
    if (pack === undefined || !isDigest(pack) || !isDigest(digest) || !whole)
      throw new Error('The checkpoint names a place that cannot be.');
    return { pack, at, bytes: size, digest };
  };
  return entries.map((entry): Entry => {
    const [type, name, changedUs] = entry;
    if (!isStep(name) || names.has(name)) throw new Error('The checkpoint names a file that cannot be.');
    names.add(name);
    if (type === 'l') return { type: 'link', name, changedUs, target: entry[3] };
    if (type === 'd') return { type: 'folder', name, changedUs, mode: entry[3] & 0o7777, tree: chunk(entry[4]) };
    const chunks = entry[5].map((one) => (one === null ? null : chunk(one)));
    if (chunks.length !== Math.ceil(entry[4] / CHUNK_BYTES)) throw new Error('The checkpoint has a file in part.');
    return { type: 'file', name, changedUs, mode: entry[3] & 0o7777, size: entry[4], chunks };
  });
}

export function isDigest(text: unknown): text is string {
  return typeof text === 'string' && /^[0-9a-f]{64}$/.test(text);
}

/** Whether a name leads exactly one folder down. */
function isStep(name: unknown): name is string {
  return typeof name === 'string' && name !== '' && name !== '.' && name !== '..' && !/[/\0]/.test(name);
}
