import { createHash } from 'node:crypto';
import { type ChunkRef, PACK_BYTES } from './format.ts';

/** Chunks that lie one after another, and what they are called together. */
export interface Pack {
  readonly digest: string;
  readonly bytes: Buffer;
}

/** Where packs are kept, outside of the sandbox. */
export interface PackStore {
  /** Resolves once the next may come; that the pack is durable is known when the checkpoint is. */
  put(pack: Pack): Promise<void>;
  /** @throws Error when it cannot be had; what comes is checked against the digest by the caller */
  get(digest: string): Promise<Buffer>;
}

export function digestOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Fills packs and hands each over when it is full. */
export class Packer {
  /** Of all packs that were handed over. */
  bytes = 0;
  readonly #put: PackStore['put'];
  #parts: Buffer[] = [];
  #refs: ChunkRef[] = [];
  #size = 0;

  constructor(put: PackStore['put']) {
    this.#put = put;
  }

  /** Whether the open pack has room for so many bytes more; an empty one has for any. */
  fits(bytes: number): boolean {
    return this.#size === 0 || this.#size + bytes <= PACK_BYTES;
  }

  /** The bytes are taken as they are: the caller changes them no more. The place has its pack when that is closed. */
  add(bytes: Buffer, digest: string): ChunkRef {
    const ref: ChunkRef = { pack: '', at: this.#size, bytes: bytes.length, digest };
    this.#parts.push(bytes);
    this.#refs.push(ref);
    this.#size += bytes.length;
    return ref;
  }

  /** Hands over what is there. */
  async close(): Promise<void> {
    if (this.#size === 0) return;
    const bytes = Buffer.concat(this.#parts, this.#size);
    const digest = digestOf(bytes);
    for (const ref of this.#refs) ref.pack = digest;
    this.bytes += bytes.length;
    this.#parts = [];
    this.#refs = [];
    this.#size = 0;
    await this.#put({ digest, bytes });
  }
}
