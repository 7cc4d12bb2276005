import { z } from 'zod';
import { idSchema } from '../ids.ts';
import type { DeepReadonly } from '../json.ts';
import { naming, text, timestamp } from './common.ts';
import { LIMITS } from './limits.ts';

/** Where a session's files lie in its sandbox, and where the agent leaves what shall be kept of its work. */
export const UPLOADS_PATH = '/mnt/session/uploads';
export const OUTPUTS_PATH = '/mnt/session/outputs';

/** File systems count a name in bytes. */
const utf8Bytes = (name: string): number => new TextEncoder().encode(name).length;

/**
 * Where in a sandbox a file is put: always below {@link UPLOADS_PATH}, however it is written (`/data.csv`, `data.csv`, or in
 * full).
 */
const mountPath = text(LIMITS.mountPathChars, 1)
  .refine((path) => !/\p{Cc}/u.test(path), 'must not contain control characters')
  .transform((path) => path.replace(new RegExp(`^${UPLOADS_PATH}(?=/|$)`), '').split('/'))
  .transform((parts) => parts.filter((part) => part !== '' && part !== '.'))
  .refine((parts) => parts.length > 0, 'must name a file')
  .refine(
    (parts) => parts.every((part) => part !== '..' && utf8Bytes(part) <= 255),
    'must not contain ".." or long names',
  )
  .transform((parts) => `${UPLOADS_PATH}/${parts.join('/')}`);

const fileParam = z.strictObject({
  type: z.literal('file', { error: naming('github_repository', 'memory_store') }),
  file_id: idSchema('file'),
  mount_path: mountPath.nullish(),
});
export type FileResourceParam = z.infer<typeof fileParam>;

/** Resources that a session is created with. */
export const sessionResourceParams = z.array(fileParam).max(LIMITS.sessionResources);
export const addSessionResourceBody = fileParam;

/** A file of a session, as the wire has it. */
export const sessionFileResource = z.strictObject({
  id: z.string(),
  type: z.literal('file'),
  file_id: z.string(),
  mount_path: z.string(),
  created_at: timestamp,
  updated_at: timestamp,
});
export type SessionFileResource = DeepReadonly<z.infer<typeof sessionFileResource>>;

/** The same inside the log: with where its bytes are, whatever becomes of the file. */
export const mountedFile = sessionFileResource.extend({ digest: z.string(), size_bytes: z.int().min(0) });
export type MountedFile = DeepReadonly<z.infer<typeof mountedFile>>;

/** Without what is the platform's own. */
export function sessionResourceOf({
  digest: _digest,
  size_bytes: _size,
  ...resource
}: MountedFile): SessionFileResource {
  return resource;
}
