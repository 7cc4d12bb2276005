import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  futimesSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { CHUNK_BYTES, type ChunkRef, decodeTree, type FileEntry, type FolderEntry } from './format.ts';
import { digestOf, type PackStore } from './packer.ts';
import { type Children, type Known, stampOf } from './scan.ts';
import type { RootState } from './writer.ts';

/** Lies in a folder whose restore has begun and not ended: whatever else is there is only a part. */
export const UNFINISHED = '.holdfast-restoring';
const MAKE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
/** Trees lie close together: few packs hold those of a whole checkpoint. */
const KEPT_PACKS = 4;
/** Above this it is no checkpoint of ours: names that come from outside may be long, and there must be an end. */
const MAX_DEPTH = 1_024;
/** Nor with more: the same tree may be named in many places. */
const MAX_ENTRIES = 4_000_000;

/**
 * Whether nothing of a session is in a folder: no file and no link, for empty folders are made by new file systems and by
 * the runner itself. What a restore that was cut off left there is nothing either.
 */
export function isFresh(path: string): boolean {
  return existsSync(join(path, UNFINISHED)) || holdsNothing(Buffer.from(path));
}
function holdsNothing(path: Buffer): boolean {
  try {
    return readdirSync(path, { withFileTypes: true, encoding: 'buffer' }).every(
      (entry) => entry.isDirectory() && holdsNothing(Buffer.concat([path, Buffer.from('/'), entry.name])),
    );
  } catch (error) {
    // Whatever belongs to somebody else, as the folder for lost files does, is no session's.
    if ((error as NodeJS.ErrnoException).code === 'EACCES') return true;
    throw error;
  }
}

interface Write {
  readonly file: Making;
  readonly number: number;
  readonly ref: ChunkRef;
}
interface Making {
  readonly path: Buffer;
  readonly entry: FileEntry;
  readonly known: { entry: FileEntry; stamp: string | null };
}

/** Fetches packs, each once as long as there is room, and believes none whose digest is another. */
class Fetched {
  entries = 0;
  readonly #store: PackStore;
  readonly #kept = new Map<string, Promise<Buffer>>();

  constructor(store: PackStore) {
    this.#store = store;
  }

  pack(digest: string): Promise<Buffer> {
    const kept = this.#kept.get(digest);
    if (kept !== undefined) return kept;
    const coming = this.#store.get(digest).then((bytes) => {
      if (digestOf(bytes) !== digest) throw new Error('A pack of the checkpoint is not what it should be.');
      return bytes;
    });
    coming.catch(() => this.#kept.delete(digest));
    this.#kept.set(digest, coming);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= KEPT_PACKS) break;
      this.#kept.delete(oldest);
    }
    return coming;
  }

  async tree(ref: ChunkRef) {
    return decodeTree(pieceOf(await this.pack(ref.pack), ref), ref.pack);
  }
}

function pieceOf(pack: Buffer, { at, bytes }: ChunkRef): Buffer {
  if (at + bytes > pack.length) throw new Error('The checkpoint names a place beyond its pack.');
  return pack.subarray(at, at + bytes);
}

/** What a checkpoint says of its roots, without their files. */
export async function treesOf<Name extends string>(
  roots: Readonly<Partial<Record<Name, ChunkRef | undefined>>>,
  store: PackStore,
): Promise<Partial<Record<Name, RootState>>> {
  const fetched = new Fetched(store);
  const known: Partial<Record<Name, RootState>> = {};
  for (const [name, tree] of Object.entries(roots) as [Name, ChunkRef | undefined][])
    if (tree !== undefined) known[name] = { tree, children: await load(fetched, tree, 0) };
  return known;
}

async function load(fetched: Fetched, tree: ChunkRef, depth: number): Promise<Children> {
  if (depth > MAX_DEPTH) throw new Error('The checkpoint is too deep.');
  const children = new Map<string, Known>();
  for (const entry of await fetched.tree(tree)) {
    if ((fetched.entries += 1) > MAX_ENTRIES) throw new Error('The checkpoint has too many entries.');
    // Others are heard meanwhile.
    if (fetched.entries % 10_000 === 0) await new Promise((resolve) => setImmediate(resolve));
    const below = entry.type === 'folder' ? await load(fetched, entry.tree, depth + 1) : undefined;
    children.set(entry.name, { entry, stamp: null, ...(below === undefined ? {} : { children: below }) });
  }
  return children;
}

/**
 * Makes the files of a checkpoint in folders that hold nothing of a session. Nothing is written through a link: names lead
 * one step down, files are made anew, links come last. When it fails the folders are empty again.
 */
export async function restoreRoots<Name extends string>(
  roots: readonly { readonly name: Name; readonly path: string; readonly tree: ChunkRef }[],
  store: PackStore,
): Promise<Partial<Record<Name, RootState>>> {
  for (const { path } of roots) {
    empty(path);
    writeFileSync(join(path, UNFINISHED), '');
  }
  try {
    const known: Partial<Record<Name, RootState>> = {};
    const fetched = new Fetched(store);
    const plan = new Plan();
    for (const { name, tree, path } of roots) {
      const children = await load(fetched, tree, 0);
      known[name] = { tree, children };
      plan.folder(Buffer.from(path).toString('latin1'), children);
    }
    await plan.write(fetched);
    plan.finish();
    for (const { path } of roots) rmSync(join(path, UNFINISHED), { force: true });
    return known;
  } catch (error) {
    for (const { path } of roots) empty(path);
    throw error;
  }
}

function empty(path: string): void {
  for (const name of readdirSync(path, { encoding: 'buffer' })) {
    if (name.toString() === 'lost+found') continue;
    rmSync(Buffer.concat([Buffer.from(`${path}/`), name]), { recursive: true, force: true });
  }
}

/** Everything that a restore has to make, in the order in which packs come. */
class Plan {
  readonly #writes = new Map<string, Write[]>();
  readonly #folders: { path: Buffer; entry: FolderEntry }[] = [];
  readonly #links: { path: Buffer; target: string; changedUs: number }[] = [];
  /** Files whose chunks come with several packs, or with none. */
  readonly #large: Making[] = [];
  readonly #umask = process.umask();

  folder(path: string, children: Children): void {
    for (const known of children.values()) {
      const { entry } = known;
      const full = `${path}/${entry.name}`;
      const place = Buffer.from(full, 'latin1');
      if (entry.type === 'link') this.#links.push({ path: place, target: entry.target, changedUs: entry.changedUs });
      else if (entry.type === 'folder') {
        mkdirSync(place, 0o700);
        this.#folders.push({ path: place, entry });
        this.folder(full, known.children ?? new Map());
      } else this.#file({ path: place, entry, known: known as Making['known'] });
    }
  }

  #file(file: Making): void {
    const { chunks } = file.entry;
    const [first] = chunks;
    if (chunks.length !== 1 || first == null) {
      closeSync(openSync(file.path, MAKE, 0o600));
      this.#large.push(file);
    }
    for (const [number, ref] of chunks.entries()) {
      if (ref === null) continue;
      const writes = this.#writes.get(ref.pack);
      if (writes === undefined) this.#writes.set(ref.pack, [{ file, number, ref }]);
      else writes.push({ file, number, ref });
    }
  }

  async write(fetched: Fetched): Promise<void> {
    const packs = [...this.#writes];
    for (const [i, [digest, writes]] of packs.entries()) {
      const bytes = await fetched.pack(digest);
      // The next one comes while this one is written.
      const next = packs[i + 1];
      if (next !== undefined) void fetched.pack(next[0]).catch(() => undefined);
      for (const { file, number, ref } of writes) {
        const piece = pieceOf(bytes, ref);
        if (file.entry.chunks.length === 1) this.#whole(file, piece);
        else {
          const fd = openSync(file.path, constants.O_WRONLY | constants.O_NOFOLLOW);
          try {
            writeAll(fd, piece, number * CHUNK_BYTES);
          } finally {
            closeSync(fd);
          }
        }
      }
    }
  }

  #whole(file: Making, bytes: Buffer): void {
    const fd = openSync(file.path, MAKE, file.entry.mode & 0o777);
    try {
      writeAll(fd, bytes, 0);
      this.#facts(fd, file);
    } finally {
      closeSync(fd);
    }
  }

  /** Its last facts; from now on it is known. */
  #facts(fd: number, { entry, known }: Making): void {
    const facts = fstatSync(fd);
    if (facts.size !== entry.size) ftruncateSync(fd, entry.size);
    if ((facts.mode & 0o7777) !== entry.mode) fchmodSync(fd, entry.mode);
    const seconds = secondsOf(entry.changedUs);
    futimesSync(fd, seconds, seconds);
    // Nothing else runs yet, so nothing can have changed it under this stamp.
    known.stamp = stampOf(fstatSync(fd, { bigint: true }));
  }

  /** What must come last: large files' facts, links, then folders from the innermost outwards, which may be read-only. */
  finish(): void {
    for (const file of this.#large) {
      const fd = openSync(file.path, constants.O_WRONLY | constants.O_NOFOLLOW);
      try {
        this.#facts(fd, file);
      } finally {
        closeSync(fd);
      }
    }
    for (const { path, target, changedUs } of this.#links) {
      symlinkSync(Buffer.from(target, 'latin1'), path);
      lutimesSync(path, secondsOf(changedUs), secondsOf(changedUs));
    }
    for (const { path, entry } of this.#folders.reverse()) {
      if (entry.mode !== (0o700 & ~this.#umask)) chmodSync(path, entry.mode);
      utimesSync(path, secondsOf(entry.changedUs), secondsOf(entry.changedUs));
    }
  }
}

/** In the middle of its microsecond, so that no rounding moves it to another. */
function secondsOf(changedUs: number): number {
  return (changedUs + 0.5) / 1e6;
}

function writeAll(fd: number, bytes: Buffer, at: number): void {
  for (let written = 0; written < bytes.length; )
    written += writeSync(fd, bytes, written, bytes.length - written, at + written);
}
