import { constants } from 'node:fs';
import { type FileHandle, lstat, open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { OutputFile } from '@holdfast/contracts';

const MAX_DEPTH = 32;
/** As the contracts bound a path. */
const MAX_PATH_CHARS = 1_024;

/**
 * What the agent has left in the session's outputs folder. Only regular files that lie there themselves are shown: a link
 * could lead to what is the runner's alone. A stamp tells one content of a file from another, as far as the file system
 * can tell.
 */
export class Outputs {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Files in the order of their paths; `more` when there are more than `limit`. What cannot be looked at is not there. */
  async list(limit: number): Promise<{ files: OutputFile[]; more: boolean }> {
    const files: OutputFile[] = [];
    const walk = async (below: string, depth: number): Promise<boolean> => {
      const entries = await readdir(join(this.#folder, below), { withFileTypes: true }).catch(() => []);
      for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
        const path = below === '' ? entry.name : `${below}/${entry.name}`;
        if (path.length > MAX_PATH_CHARS || !path.isWellFormed()) continue;
        if (entry.isDirectory() && depth < MAX_DEPTH && (await walk(path, depth + 1))) return true;
        if (!entry.isFile()) continue;
        if (files.length === limit) return true;
        const facts = await lstat(join(this.#folder, path), { bigint: true }).catch(() => null);
        if (facts?.isFile() === true) files.push({ path, bytes: Number(facts.size), stamp: stampOf(facts) });
      }
      return false;
    };
    const more = await walk('', 0);
    return { files, more };
  }

  /** Bytes of a file from a place on; null when it is not as it was listed any more. */
  async read({ path, stamp }: OutputFile, at: number, bytes: number): Promise<Buffer | null> {
    if (path.split('/').includes('..')) return null;
    let handle: FileHandle | undefined;
    try {
      const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;
      handle = await open(join(this.#folder, path), flags);
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(bytes), 0, bytes, at);
      // After it was read, so that what was read is of that content.
      const facts = await handle.stat({ bigint: true });
      return facts.isFile() && stampOf(facts) === stamp ? buffer.subarray(0, bytesRead) : null;
    } catch {
      return null;
    } finally {
      await handle?.close();
    }
  }
}

function stampOf(facts: { ino: bigint; dev: bigint; size: bigint; mtimeNs: bigint; ctimeNs: bigint }): string {
  return [facts.dev, facts.ino, facts.size, facts.mtimeNs, facts.ctimeNs].join(':');
}
