import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { AppError, isId } from '@holdfast/contracts';
import type { S3Place } from './s3-blob-store.ts';

export interface BlobRef {
  /** SHA-256, hex. */
  readonly digest: string;
  readonly sizeBytes: number;
}

/**
 * Bodies too large for the log, by digest. A digest resolves only within the workspace that put it (C3). A resolved `put`
 * is durable; putting the same bytes again changes nothing but the blob's age. Neither `put` nor `get` holds a large blob
 * in memory. Both adapters, a folder and a bucket, pass the same suite (`blob-store.int`).
 *
 * `get` and `size` throw AppError `blob.not-found`.
 */
export interface BlobStore {
  put(workspaceId: string, bytes: Uint8Array | AsyncIterable<Uint8Array>): Promise<BlobRef>;
  get(workspaceId: string, digest: string): Promise<Readable>;
  read(workspaceId: string, digest: string): Promise<Buffer>;
  size(workspaceId: string, digest: string): Promise<number>;
  /** Removes a blob; one that is not there is removed already. Whoever calls it knows that nobody needs it. */
  delete(workspaceId: string, digest: string): Promise<void>;
}

/** Blob store in a local folder: `<folder>/<workspace>/<2 hex>/<digest>`, written beside and renamed after fsync. */
export class DirectoryBlobStore implements BlobStore {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async put(workspaceId: string, bytes: Uint8Array | AsyncIterable<Uint8Array>): Promise<BlobRef> {
    const home = join(this.#folder, workspacePath(workspaceId));
    const incoming = join(home, 'incoming');
    const madeHome = await mkdir(incoming, { recursive: true, mode: 0o700 });
    const temporary = join(incoming, randomBytes(12).toString('hex'));
    const file = await open(temporary, 'wx', 0o600);
    try {
      const written = await writeAll(file, bytes);
      await file.sync();
      const folder = join(home, written.digest.slice(0, 2));
      const madeFolder = await mkdir(folder, { recursive: true, mode: 0o700 });
      await rename(temporary, join(folder, written.digest));
      // A new folder is an entry of the one above it, which has to be on disk too.
      await syncFolder(folder);
      if (madeFolder !== undefined) await syncFolder(home);
      if (madeHome !== undefined) await syncFolder(dirname(madeHome));
      return written;
    } finally {
      await file.close();
      await rm(temporary, { force: true });
    }
  }

  async get(workspaceId: string, digest: string): Promise<Readable> {
    await this.size(workspaceId, digest);
    return createReadStream(this.#path(workspaceId, digest));
  }

  async read(workspaceId: string, digest: string): Promise<Buffer> {
    return readAll(await this.get(workspaceId, digest));
  }

  async size(workspaceId: string, digest: string): Promise<number> {
    try {
      const { size } = await stat(this.#path(workspaceId, digest));
      return size;
    } catch (cause) {
      throw noSuchBlob(cause);
    }
  }

  async delete(workspaceId: string, digest: string): Promise<void> {
    await rm(this.#path(workspaceId, digest), { force: true });
  }

  #path(workspaceId: string, digest: string): string {
    return join(this.#folder, blobPath(workspaceId, digest));
  }
}

/** Opens the store that is configured. What a bucket needs is loaded only for one. */
export async function openBlobStore(place: { readonly folder: string } | S3Place): Promise<BlobStore> {
  if ('folder' in place) return new DirectoryBlobStore(place.folder);
  const { S3BlobStore } = await import('./s3-blob-store.ts');
  return new S3BlobStore(place);
}

/** Where a workspace's blobs lie within a store. @throws AppError `blob.workspace` */
export function workspacePath(workspaceId: string): string {
  if (!isId('workspace', workspaceId)) throw new AppError('defect', 'blob.workspace', 'A blob needs a workspace id.');
  return workspaceId;
}

/** Where a blob lies within a store. @throws AppError `blob.not-found` for what no digest is, `blob.workspace` */
export function blobPath(workspaceId: string, digest: string): string {
  if (!/^[0-9a-f]{64}$/.test(digest)) throw noSuchBlob();
  return `${workspacePath(workspaceId)}/${digest.slice(0, 2)}/${digest}`;
}

export function noSuchBlob(cause?: unknown): AppError {
  return new AppError('not-found', 'blob.not-found', 'There is no such blob in this workspace.', { cause });
}

/** All bytes of a stream. */
export async function readAll(stream: Readable): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

async function writeAll(file: FileHandle, bytes: Uint8Array | AsyncIterable<Uint8Array>): Promise<BlobRef> {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  for await (const part of bytes instanceof Uint8Array ? [bytes] : bytes) {
    hash.update(part);
    await file.writeFile(part);
    sizeBytes += part.length;
  }
  return { digest: hash.digest('hex'), sizeBytes };
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
