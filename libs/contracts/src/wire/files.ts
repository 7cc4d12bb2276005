import { z } from 'zod';
import type { DeepReadonly } from '../json.ts';
import { timestamp } from './common.ts';
import { LIMITS } from './limits.ts';

/** The part of the blob store that files' bytes lie in: what is collected there is nobody else's. */
export const FILE_BLOBS = 'files';

/** The last component of a path, as a name that any system can save. */
export const fileName = z
  .string()
  .max(LIMITS.fileNameChars)
  .regex(/^[^<>:"|?*\\/\p{Cc}]+$/u, 'must not be empty or contain control characters or any of < > : " | ? * \\ /')
  .refine((name) => name.isWellFormed(), 'must be valid Unicode');

/** A media type without parameters. */
const token = '[A-Za-z0-9!#$&^_.+-]{1,127}';
export const mimeType = z.string().regex(new RegExp(`^${token}/${token}$`), 'must be a media type such as text/plain');

/** A file's metadata as the wire has it. Uploaded files may be downloaded too. */
export const fileResource = z.strictObject({
  id: z.string(),
  type: z.literal('file'),
  filename: fileName,
  mime_type: mimeType,
  size_bytes: z.int().min(0),
  created_at: timestamp,
  downloadable: z.boolean(),
  expires_at: timestamp.nullable(),
  /** The session that made it; null = uploaded. */
  scope: z.strictObject({ id: z.string(), type: z.literal('session') }).nullable(),
  /** Additive: where below the outputs folder the session left it; absent of what was uploaded. */
  x_path: z.string().optional(),
});
export type FileResource = DeepReadonly<z.infer<typeof fileResource>>;

/** Seconds, as a form writes them. */
const seconds = z
  .string()
  .regex(/^\d{1,9}$/, 'must be a whole number')
  .transform(Number)
  .pipe(z.int().min(LIMITS.fileExpirySecondsMin).max(LIMITS.fileExpirySecondsMax));

/** The fields of an upload's form beside its `file`. */
export const uploadFields = z.strictObject({ expires_in_seconds: seconds.optional() });
export type UploadFields = z.infer<typeof uploadFields>;

/** `cmd.file.<id>.create`: its bytes are in the blob store already. */
export interface CreateFileBody {
  readonly filename: string;
  readonly mimeType: string;
  readonly digest: string;
  readonly sizeBytes: number;
  readonly expiresInSeconds: number | null;
  /** The session that made it, and where below its outputs folder; null = uploaded. */
  readonly output: { readonly sessionId: string; readonly path: string } | null;
}

const EXTENSIONS: Readonly<Record<string, string>> = {
  'application/json': '.json',
  'application/pdf': '.pdf',
  'application/zip': '.zip',
  'image/gif': '.gif',
  'image/jpeg': '.jpg',
  'image/png': '.png',
  'image/webp': '.webp',
  'text/csv': '.csv',
  'text/html': '.html',
  'text/markdown': '.md',
  'text/plain': '.txt',
};

/** A file's name from any path: its last component without what no name may hold. */
export function nameOfPath(path: string): string {
  const last = path.slice(path.lastIndexOf('/') + 1);
  const name = last.replace(/[<>:"|?*\\\p{Cc}]/gu, '_').slice(0, LIMITS.fileNameChars);
  return fileName.safeParse(name).success ? name : 'unnamed';
}

/** The name of a file that came without one. */
export function unnamedFile(type: string): string {
  return `unnamed${EXTENSIONS[type] ?? ''}`;
}

/** The media type that a name's ending says. */
export function mimeTypeOf(name: string): string {
  const found = Object.entries(EXTENSIONS).find(([, extension]) => name.toLowerCase().endsWith(extension));
  return found?.[0] ?? 'application/octet-stream';
}
