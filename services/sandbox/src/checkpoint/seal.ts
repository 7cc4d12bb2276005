import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import { AppError, PACK_LIMIT_BYTES } from '@holdfast/contracts';

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);
const FORMAT = 1;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const HEAD_BYTES = 1 + NONCE_BYTES + TAG_BYTES;

/**
 * Seals packs with a key of their workspace's own, which derives from the platform's (AES-256-GCM, compressed before). A
 * sealed pack opens only as the pack of that workspace with that digest.
 */
export class Seal {
  readonly #secret: string;
  readonly #keys = new Map<string, Buffer>();

  constructor(secret: string) {
    this.#secret = secret;
  }

  async seal(workspaceId: string, digest: string, bytes: Buffer): Promise<Buffer> {
    const packed = await compress(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 1 } });
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', this.#key(workspaceId), nonce).setAAD(Buffer.from(digest));
    const sealed = cipher.update(packed);
    return Buffer.concat([Buffer.of(FORMAT), nonce, Buffer.concat([sealed, cipher.final()]), cipher.getAuthTag()]);
  }

  /** @throws AppError `checkpoint.unreadable` when it is not what was sealed, or the platform's key is another */
  async open(workspaceId: string, digest: string, sealed: Buffer): Promise<Buffer> {
    try {
      if (sealed[0] !== FORMAT || sealed.length < HEAD_BYTES) throw new Error('its format is not known');
      const key = this.#key(workspaceId);
      const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(1, 1 + NONCE_BYTES))
        .setAAD(Buffer.from(digest))
        .setAuthTag(sealed.subarray(-TAG_BYTES));
      const packed = decipher.update(sealed.subarray(1 + NONCE_BYTES, -TAG_BYTES));
      return await decompress(Buffer.concat([packed, decipher.final()]), { maxOutputLength: PACK_LIMIT_BYTES });
    } catch (cause) {
      throw new AppError(
        'unavailable',
        'checkpoint.unreadable',
        'A part of a checkpoint cannot be opened: it was changed, or CHECKPOINT_KEY is not the one that it was made with.',
        { cause },
      );
    }
  }

  #key(workspaceId: string): Buffer {
    const known = this.#keys.get(workspaceId);
    if (known !== undefined) return known;
    const key = Buffer.from(hkdfSync('sha256', this.#secret, 'holdfast checkpoints', workspaceId, 32));
    this.#keys.set(workspaceId, key);
    return key;
  }
}
