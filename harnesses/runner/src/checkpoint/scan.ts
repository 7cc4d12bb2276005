import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { CHUNK_BYTES, type Entry, type FileEntry } from './format.ts';

/** Clocks of file systems tick this slowly at worst: what is this young may be written once more under the same time. */
export const TICK_MS = 20;
const TICK_NS = BigInt(TICK_MS) * 1_000_000n;
/** Some file systems keep what is this small in the inode, and no block with it. */
const INLINE_BYTES = 64 * 1024;
/** How a folder of a cache says what it is (bford.info/cachedir). */
const CACHE_TAG = 'CACHEDIR.TAG';
const CACHE_SIGNATURE = 'Signature: 8a477f597d28d172789f06886806bc55';
const ZEROS = Buffer.alloc(CHUNK_BYTES);
const READ = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;

/** What is known of a file, a link or a folder, and by what it is known again. */
export interface Known<E extends Entry = Entry> {
  readonly entry: E;
  /** Inode, size, times: while a file has them its content is as it was. Null = must be read to be known. */
  readonly stamp: string | null;
  /** Of a folder. */
  readonly children?: Children;
}
export type Children = ReadonlyMap<string, Known>;

/** A file that is not as it is known, or not known. */
export interface ChangedFile {
  readonly kind: 'file';
  readonly name: string;
  readonly path: Buffer;
  readonly before: Known | undefined;
  /** Whether it belongs to a database that is more than one file. */
  readonly database: boolean;
  readonly size: number;
  /** What was read of it while everything stood still; `failed` = it could not be read. */
  content: FileContent | 'failed' | null;
}
export interface FoundFolder {
  readonly kind: 'folder';
  readonly name: string;
  readonly mode: number;
  readonly changedUs: number;
  readonly before: Known | undefined;
  readonly children: Map<string, Known | ChangedFile | FoundFolder>;
}
export interface ContentFacts {
  /** Null when it is so young, or was written to meanwhile, that it must be read again to be known. */
  readonly stamp: string | null;
  readonly mode: number;
  readonly changedUs: number;
  readonly size: number;
  /** It was written to while it was read. */
  readonly torn: boolean;
}
export interface FileContent extends ContentFacts {
  readonly chunks: readonly (Buffer | null)[];
}

export interface ScanLimits {
  readonly entries: number;
  readonly bytes: number;
}
export interface ScanOptions {
  /** Left out: a name without a slash wherever it is found, another as the path `<root>/…` that it is. */
  readonly exclude: ReadonlySet<string>;
  readonly limits: ScanLimits;
  /** Whether what is known to be unchanged must be read all the same. */
  readonly stale: (entry: FileEntry) => boolean;
  /** Told of every entry, for whoever watches the time. */
  readonly onEntry: () => void;
}

/** More than a checkpoint may hold. */
export class OverLimit extends Error {
  readonly limit: keyof ScanLimits;
  constructor(limit: keyof ScanLimits) {
    super(`more than the limit of ${limit}`);
    this.limit = limit;
  }
}

/**
 * One look at folders, from beginning to end without anything else of this process in between. What is as it is known is
 * taken over without being opened (C4).
 */
export class Scan {
  readonly changed: ChangedFile[] = [];
  /** Sockets, pipes and devices. */
  skipped = 0;
  /** Paths that could not be read, with the reason, as far as there is room for them. */
  readonly unreadable: string[] = [];
  unreadableCount = 0;
  entries = 0;
  /** That files take on disk. */
  bytes = 0;
  readonly #options: ScanOptions;

  constructor(options: ScanOptions) {
    this.#options = options;
  }

  /** @throws OverLimit */
  folder(root: string, path: string, before: Children | undefined): FoundFolder['children'] {
    return this.#folder(Buffer.from(path).toString('latin1'), root, before);
  }

  cannot(path: Buffer | string, error: unknown): void {
    const { code, message } = error as NodeJS.ErrnoException;
    // What went away meanwhile is not there any more, that is all.
    if (code === 'ENOENT' || code === 'ENOTDIR') return;
    this.unreadableCount += 1;
    if (this.unreadable.length < 20) this.unreadable.push(`${path.toString().slice(0, 300)} (${code ?? message})`);
  }

  #folder(path: string, shown: string, before: Children | undefined): FoundFolder['children'] {
    const children: FoundFolder['children'] = new Map();
    const names = this.#names(path);
    const all = new Set(names);
    if (all.has(CACHE_TAG) && isCache(Buffer.from(`${path}/${CACHE_TAG}`, 'latin1'))) return children;
    const { exclude } = this.#options;
    for (const name of names) {
      if (exclude.size > 0 && (exclude.has(name) || exclude.has(`${shown}/${name}`))) continue;
      const one = this.#one(`${path}/${name}`, `${shown}/${name}`, name, before?.get(name), all);
      if (one !== null) children.set(name, one);
    }
    return children;
  }

  #names(path: string): string[] {
    const folder = Buffer.from(path, 'latin1');
    try {
      return readdirSync(folder, { encoding: 'latin1' });
    } catch (error) {
      this.cannot(folder, error);
      return [];
    }
  }

  #one(
    full: string,
    shown: string,
    name: string,
    before: Known | undefined,
    siblings: ReadonlySet<string>,
  ): Known | ChangedFile | FoundFolder | null {
    const path = Buffer.from(full, 'latin1');
    this.#options.onEntry();
    try {
      const facts = lstatSync(path, { bigint: true });
      const isFile = facts.isFile();
      if (!isFile && !facts.isDirectory() && !facts.isSymbolicLink()) {
        this.skipped += 1;
        return null;
      }
      this.#count(facts);
      const changedUs = changedOf(facts);
      if (isFile) {
        const { entry, stamp } = before ?? {};
        if (before !== undefined && entry?.type === 'file' && stamp === stampOf(facts) && !this.#options.stale(entry))
          return before;
        const database =
          siblings.has(`${name}-wal`) || siblings.has(`${name}-journal`) || /-(?:wal|journal|shm)$/.test(name);
        const found: ChangedFile = {
          kind: 'file',
          name,
          path,
          before,
          database,
          size: Number(facts.size),
          content: null,
        };
        this.changed.push(found);
        return found;
      }
      if (facts.isSymbolicLink()) {
        const target = readlinkSync(path, { encoding: 'latin1' });
        const { entry } = before ?? {};
        if (before !== undefined && entry?.type === 'link' && entry.target === target && entry.changedUs === changedUs)
          return before;
        return { entry: { type: 'link', name, changedUs, target }, stamp: null };
      }
      const children = this.#folder(full, shown, before?.children);
      return { kind: 'folder', name, mode: modeOf(facts), changedUs, before, children };
    } catch (error) {
      if (error instanceof OverLimit) throw error;
      this.cannot(path, error);
      return null;
    }
  }

  #count({ blocks }: BigIntStats): void {
    this.entries += 1;
    this.bytes += Number(blocks) * 512;
    const { limits } = this.#options;
    if (this.entries > limits.entries) throw new OverLimit('entries');
    if (this.bytes > limits.bytes) throw new OverLimit('bytes');
  }
}

/** An open file, to be read once from its beginning to its end. */
export class OpenFile {
  readonly #fd: number;
  readonly #facts: BigIntStats;
  readonly #beganNs = BigInt(Date.now()) * 1_000_000n;

  /** @throws Error when it cannot be read, or is no file any more */
  constructor(path: Buffer) {
    this.#fd = openSync(path, READ);
    this.#facts = fstatSync(this.#fd, { bigint: true });
    if (this.#facts.isFile()) return;
    this.close();
    throw Object.assign(new Error('not a file any more'), { code: 'ENOENT' });
  }

  /** Its chunks, null for one of zeros. @throws Error when it has become shorter meanwhile */
  *chunks(): Generator<Buffer | null> {
    const { blocks } = this.#facts;
    const size = Number(this.#facts.size);
    const empty = blocks === 0n && size > INLINE_BYTES;
    const sparse = blocks * 512n < this.#facts.size;
    for (let at = 0; at < size; at += CHUNK_BYTES) {
      if (empty) {
        yield null;
        continue;
      }
      const bytes = Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, size - at));
      for (let read = 0; read < bytes.length; ) {
        const more = readSync(this.#fd, bytes, read, bytes.length - read, at + read);
        if (more === 0) throw new Error('it became shorter while it was read');
        read += more;
      }
      yield sparse && bytes.equals(ZEROS.subarray(0, bytes.length)) ? null : bytes;
    }
  }

  /** The facts that its content belongs to, once it is read. */
  facts(): ContentFacts {
    const stamp = stampOf(this.#facts);
    const torn = stampOf(fstatSync(this.#fd, { bigint: true })) !== stamp;
    return {
      stamp: !torn && this.#facts.ctimeNs < this.#beganNs - TICK_NS ? stamp : null,
      mode: modeOf(this.#facts),
      changedUs: changedOf(this.#facts),
      size: Number(this.#facts.size),
      torn,
    };
  }

  close(): void {
    closeSync(this.#fd);
  }
}

export function stampOf({ ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${ino} ${size} ${mtimeNs} ${ctimeNs}`;
}
function modeOf({ mode }: BigIntStats): number {
  return Number(mode & 0o7777n);
}
function changedOf({ mtimeNs }: BigIntStats): number {
  return Number(mtimeNs / 1000n);
}

function isCache(tag: Buffer): boolean {
  let file: OpenFile | null = null;
  try {
    file = new OpenFile(tag);
    for (const chunk of file.chunks()) return chunk?.toString('latin1').startsWith(CACHE_SIGNATURE) === true;
    return false;
  } catch {
    // One that cannot be read says nothing.
    return false;
  } finally {
    file?.close();
  }
}
