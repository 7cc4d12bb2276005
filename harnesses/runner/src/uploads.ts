import { mkdirSync, symlinkSync } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { HubMessage, UploadedFile } from '@holdfast/contracts';

/** How the session's folder is called everywhere; it lies in the home, which is kept with everything else of the agent. */
const SESSION_PATH = '/mnt/session';

type Piece = Extract<HubMessage, { type: 'upload' }>;

/** Makes the folders that every session has. */
export function makeSession(folder: string): void {
  try {
    for (const name of ['uploads', 'outputs']) mkdirSync(join(folder, name), { recursive: true });
  } catch (error) {
    // The agent owns its home, and may have put something else there.
    process.stderr.write(`${folder} could not be made: ${(error as Error).message}\n`);
  }
}

/** Makes the session's folder reachable under its name, where that can be done and was not before. */
export function linkSession(folder: string): void {
  try {
    symlinkSync(folder, SESSION_PATH);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return;
    process.stderr.write(`${SESSION_PATH} is not there: ${(error as Error).message}; look in ${folder}\n`);
  }
}

/**
 * Files that the platform puts into the session's folder. A file is there in whole or not at all, and what the agent does
 * to it afterwards is the agent's: it is put there once, as long as the note of that is there.
 */
export class Uploads {
  readonly #folder: string;
  readonly #notes: string;
  #file: { readonly path: string; readonly handle: FileHandle; at: number } | null = null;

  constructor(folder: string) {
    this.#folder = folder;
    this.#notes = join(folder, '.uploaded.json');
  }

  /** The paths of those that were not put here yet. */
  async missing(files: readonly UploadedFile[]): Promise<string[]> {
    const put = await this.#read();
    return files.filter(({ path, digest }) => put[path] !== digest).map(({ path }) => path);
  }

  /** Takes the next piece of a file; why it cannot, else null. */
  async take(piece: Piece): Promise<string | null> {
    try {
      const target = this.#targetOf(piece.file.path);
      // Not after the target's own name, which may be as long as a name can be.
      const beside = join(dirname(target), '.holdfast-upload');
      if (piece.at === 0) {
        await this.#drop();
        await mkdir(dirname(target), { recursive: true });
        await rm(beside, { force: true });
        this.#file = { path: target, handle: await open(beside, 'wx', 0o644), at: 0 };
      }
      const file = this.#file;
      if (file?.path !== target || file.at !== piece.at) return 'a piece of it is missing';
      const bytes = Buffer.from(piece.data, 'base64');
      await file.handle.writeFile(bytes);
      file.at += bytes.length;
      if (!piece.last) return null;
      await file.handle.sync();
      await this.#drop();
      await rename(beside, target);
      await this.#note(piece.file);
      return null;
    } catch (error) {
      await this.#drop();
      return (error as Error).message.slice(0, 1_000);
    }
  }

  #targetOf(path: string): string {
    if (!path.startsWith(`${SESSION_PATH}/uploads/`) || path.split('/').includes('..'))
      throw new Error(`${path} is no place for a file of the session`);
    return join(this.#folder, path.slice(SESSION_PATH.length));
  }

  async #drop(): Promise<void> {
    const file = this.#file;
    this.#file = null;
    await file?.handle.close();
  }

  async #read(): Promise<Record<string, string>> {
    try {
      const text = (await stat(this.#notes)).size > 1_000_000 ? '' : await readFile(this.#notes, 'utf8');
      const notes: unknown = JSON.parse(text);
      return typeof notes === 'object' && notes !== null ? (notes as Record<string, string>) : {};
    } catch {
      // None yet, or none that can be read: everything is put there again.
      return {};
    }
  }

  async #note({ path, digest }: UploadedFile): Promise<void> {
    const fresh = `${this.#notes}.new`;
    await writeFile(fresh, JSON.stringify({ ...(await this.#read()), [path]: digest }));
    await rename(fresh, this.#notes);
  }
}
