import { createHash, randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import {
  CopyObjectCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { AppError } from '@holdfast/contracts';
import { type BlobRef, type BlobStore, blobPath, noSuchBlob, readAll, workspacePath } from './blob-store.ts';

/** A bucket of Amazon S3, or of a server that speaks its protocol. */
export interface S3Place {
  readonly bucket: string;
  readonly region: string;
  /** URL of the server; null = Amazon's of the region. */
  readonly endpoint: string | null;
  /** What every key begins with; empty, or a path that ends in `/`. */
  readonly prefix: string;
  /** The bucket's name in the path, as most servers but Amazon's want it, not in the host. */
  readonly pathStyle: boolean;
  /** Null = what the process has from its surroundings: an instance's or pod's role, the shared credentials file. */
  readonly credentials: { readonly accessKeyId: string; readonly secretAccessKey: string } | null;
}

/** A blob up to this size is one request, and is held in memory; of a larger one so much at a time, {@link PARALLEL_PARTS} times. */
const PART_BYTES = 8 * 1024 * 1024;
const PARALLEL_PARTS = 3;
/** What one request can copy from where a large blob arrives to where its digest says. */
const MAX_BYTES = 5 * 1024 ** 3;
const CONNECT_TIMEOUT_MS = 5_000;
/** Until a request is answered; the copy of a large blob takes long. */
const ANSWER_TIMEOUT_MS = 300_000;

/**
 * Blob store in a bucket, under the same names as in a folder: `<prefix><workspace>/<2 hex>/<digest>`. The digest of a
 * large blob is known only when all of it has arrived, so it arrives in parts under `incoming/` and is copied by the
 * server; what a crash leaves there, and uploads that were never completed, are for a lifecycle rule of the bucket.
 *
 * Beside what every blob store throws: `blob.unavailable` when the server refuses or does not answer, `blob.too-large`
 * above 5 GiB.
 */
export class S3BlobStore implements BlobStore {
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;

  constructor(place: S3Place) {
    this.#bucket = place.bucket;
    this.#prefix = place.prefix;
    this.#client = new S3Client({
      region: place.region,
      forcePathStyle: place.pathStyle,
      ...(place.endpoint === null ? {} : { endpoint: place.endpoint }),
      ...(place.credentials === null ? {} : { credentials: place.credentials }),
      // What is sent is signed with its digest anyway, and few servers but Amazon's know the newer checksums.
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      requestHandler: {
        connectionTimeout: CONNECT_TIMEOUT_MS,
        requestTimeout: ANSWER_TIMEOUT_MS,
        throwOnRequestTimeout: true,
      },
    });
  }

  async put(workspaceId: string, bytes: Uint8Array | AsyncIterable<Uint8Array>): Promise<BlobRef> {
    const home = `${this.#prefix}${workspacePath(workspaceId)}/`;
    const source = new Source(bytes);
    try {
      const first = await source.take(PART_BYTES);
      if (first.whole) {
        const ref = source.ref();
        const key = this.#key(workspaceId, ref.digest);
        await this.#client.send(new PutObjectCommand({ Bucket: this.#bucket, Key: key, Body: first.bytes }));
        return ref;
      }
      return await this.#putInParts(`${home}incoming/${randomBytes(12).toString('hex')}`, workspaceId, source, first);
    } catch (error) {
      throw source.broke ?? unavailable(error);
    }
  }

  async #putInParts(incoming: string, workspaceId: string, source: Source, first: Taken): Promise<BlobRef> {
    const Bucket = this.#bucket;
    await new Upload({
      client: this.#client,
      partSize: PART_BYTES,
      queueSize: PARALLEL_PARTS,
      params: { Bucket, Key: incoming, Body: Readable.from(source.after(first)) },
    }).done();
    try {
      const ref = source.ref();
      const CopySource = `${Bucket}/${encodeURI(incoming)}`;
      await this.#client.send(new CopyObjectCommand({ Bucket, Key: this.#key(workspaceId, ref.digest), CopySource }));
      return ref;
    } finally {
      await this.#client.send(new DeleteObjectCommand({ Bucket, Key: incoming }));
    }
  }

  async get(workspaceId: string, digest: string): Promise<Readable> {
    const Key = this.#key(workspaceId, digest);
    const { Body } = await found(this.#client.send(new GetObjectCommand({ Bucket: this.#bucket, Key })));
    if (!(Body instanceof Readable)) throw new AppError('defect', 'blob.body', 'The S3 client gave no stream.');
    return Body;
  }

  async read(workspaceId: string, digest: string): Promise<Buffer> {
    return readAll(await this.get(workspaceId, digest));
  }

  async size(workspaceId: string, digest: string): Promise<number> {
    const Key = this.#key(workspaceId, digest);
    const head = await found(this.#client.send(new HeadObjectCommand({ Bucket: this.#bucket, Key })));
    return head.ContentLength ?? 0;
  }

  async delete(workspaceId: string, digest: string): Promise<void> {
    const Key = this.#key(workspaceId, digest);
    try {
      await this.#client.send(new DeleteObjectCommand({ Bucket: this.#bucket, Key }));
    } catch (error) {
      throw unavailable(error);
    }
  }

  #key(workspaceId: string, digest: string): string {
    return this.#prefix + blobPath(workspaceId, digest);
  }
}

interface Taken {
  readonly bytes: Buffer;
  /** True when nothing comes after it. */
  readonly whole: boolean;
}

/** What is put: counted and digested on its way through. */
class Source {
  /** Why it broke off by itself; undefined = it did not. */
  broke: unknown;
  readonly #hash = createHash('sha256');
  #sizeBytes = 0;
  readonly #pieces: AsyncIterator<Uint8Array>;

  constructor(bytes: Uint8Array | AsyncIterable<Uint8Array>) {
    this.#pieces = this.#digested(bytes);
  }

  /** Of what came so far. */
  ref(): BlobRef {
    return { digest: this.#hash.copy().digest('hex'), sizeBytes: this.#sizeBytes };
  }

  /** Pieces until there are more than `atLeastBytes`, or no more. */
  async take(atLeastBytes: number): Promise<Taken> {
    const pieces: Uint8Array[] = [];
    while (this.#sizeBytes <= atLeastBytes) {
      const next = await this.#pieces.next();
      if (next.done === true) return { bytes: Buffer.concat(pieces), whole: true };
      pieces.push(next.value);
    }
    return { bytes: Buffer.concat(pieces), whole: false };
  }

  async *after(first: Taken): AsyncGenerator<Uint8Array, void> {
    yield first.bytes;
    for (let next = await this.#pieces.next(); next.done !== true; next = await this.#pieces.next()) yield next.value;
  }

  async *#digested(bytes: Uint8Array | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void> {
    try {
      for await (const piece of bytes instanceof Uint8Array ? [bytes] : bytes) {
        this.#hash.update(piece);
        this.#sizeBytes += piece.length;
        if (this.#sizeBytes > MAX_BYTES)
          throw new AppError('invalid', 'blob.too-large', `A blob holds at most ${MAX_BYTES} bytes.`);
        yield piece;
      }
    } catch (error) {
      this.broke = error;
      throw error;
    }
  }
}

async function found<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof S3ServiceException && error.$metadata.httpStatusCode === 404 && error.name !== 'NoSuchBucket')
      throw noSuchBlob(error);
    throw unavailable(error);
  }
}

function unavailable(cause: unknown): AppError {
  const why = cause instanceof Error ? cause.name : String(cause);
  return new AppError('unavailable', 'blob.unavailable', `The blob store refuses or does not answer (${why}).`, {
    cause,
  });
}
