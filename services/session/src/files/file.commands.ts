import {
  AppError,
  type Command,
  type CreateFileBody,
  type FileResource,
  isAppError,
  type StoredEvent,
} from '@holdfast/contracts';
import type { BlobStore, EventLog } from '@holdfast/event-store';
import type pg from 'pg';
import type { Catalogue } from '../catalogue/catalogue.ts';
import { appendObject } from '../commands/append-object.ts';
import type { Idempotent } from '../commands/idempotent.ts';

/**
 * Files of a workspace: rows and audit events. Their bytes lie in the blob store before a file is created, and stay there
 * after it is deleted for as long as `FileCollector` waits.
 */
export class FileCommands {
  readonly #log: EventLog;
  readonly #pool: pg.Pool;
  readonly #catalogue: Catalogue;
  readonly #idempotent: Idempotent;
  readonly #blobs: BlobStore;
  readonly #quotaBytes: number;

  constructor(parts: {
    log: EventLog;
    pool: pg.Pool;
    catalogue: Catalogue;
    idempotent: Idempotent;
    blobs: BlobStore;
    /** What the files of one workspace may hold together. */
    quotaBytes: number;
  }) {
    this.#log = parts.log;
    this.#pool = parts.pool;
    this.#catalogue = parts.catalogue;
    this.#idempotent = parts.idempotent;
    this.#blobs = parts.blobs;
    this.#quotaBytes = parts.quotaBytes;
  }

  /** @throws AppError `file.quota`; `file.bytes-gone` when the blob was collected since it was put */
  create(id: string, command: Command<CreateFileBody>): Promise<FileResource> {
    const { body, workspaceId } = command;
    return this.#idempotent.run(command, storedFile, async (claim) => {
      await this.#admit(workspaceId, body.sizeBytes);
      await this.#hold(workspaceId, body.digest);
      const nowMs = Date.now();
      const file: FileResource = {
        id,
        type: 'file',
        filename: body.filename,
        mime_type: body.mimeType,
        size_bytes: body.sizeBytes,
        created_at: new Date(nowMs).toISOString(),
        downloadable: true,
        expires_at:
          body.expiresInSeconds === null ? null : new Date(nowMs + body.expiresInSeconds * 1_000).toISOString(),
        scope: body.output === null ? null : { id: body.output.sessionId, type: 'session' },
        ...(body.output === null ? {} : { x_path: body.output.path }),
      };
      await appendObject(
        this.#log,
        command,
        { aggregate: 'file', id },
        { type: 'file.created', data: { file, digest: body.digest } },
        [
          {
            text: `insert into files (id, workspace_id, resource, digest, size_bytes, scope_id, created_at, expires_at)
                   values ($1, $2, $3, $4, $5, $6, $7, $8)`,
            values: [
              id,
              workspaceId,
              JSON.stringify(file),
              body.digest,
              file.size_bytes,
              body.output?.sessionId ?? null,
              file.created_at,
              file.expires_at,
            ],
          },
          ...claim,
        ],
      );
      return file;
    });
  }

  async delete(id: string, command: Command): Promise<{ id: string; type: 'file_deleted' }> {
    const reply = { id, type: 'file_deleted' } as const;
    const { workspaceId } = command;
    return this.#idempotent.run(
      command,
      () => reply,
      async (claim) => {
        const { digest } = await this.#catalogue.file(workspaceId, id);
        try {
          await appendObject(this.#log, command, { aggregate: 'file', id }, { type: 'file.deleted', data: {} }, [
            { text: 'delete from files where id = $1 and workspace_id = $2', values: [id, workspaceId], rows: 1 },
            // Its bytes stay for a while: a backup that began before this names them.
            {
              text: 'update file_blobs set held_at = clock_timestamp() where workspace_id = $1 and digest = $2',
              values: [workspaceId, digest],
            },
            ...claim,
          ]);
        } catch (error) {
          // Somebody else deleted it just now.
          if (isAppError(error) && error.details['constraint'] === 'row-count')
            await this.#catalogue.file(workspaceId, id);
          throw error;
        }
        return reply;
      },
    );
  }

  async #admit(workspaceId: string, sizeBytes: number): Promise<void> {
    const { rows } = await this.#pool.query<{ used: string }>(
      'select coalesce(sum(size_bytes), 0) as used from files where workspace_id = $1',
      [workspaceId],
    );
    if (Number(rows[0]?.used) + sizeBytes <= this.#quotaBytes) return;
    throw new AppError(
      'invalid',
      'file.quota',
      `The files of the workspace may hold ${this.#quotaBytes} bytes together; delete some first.`,
      { details: { errorCode: 'storage_quota_exceeded' } },
    );
  }

  /** Keeps the blob from being collected until the file's row does, and makes sure that it was not before. */
  async #hold(workspaceId: string, digest: string): Promise<void> {
    await this.#pool.query(
      `insert into file_blobs (workspace_id, digest) values ($1, $2)
       on conflict (workspace_id, digest) do update set held_at = clock_timestamp()`,
      [workspaceId, digest],
    );
    try {
      await this.#blobs.size(workspaceId, digest);
    } catch (cause) {
      if (!isAppError(cause) || cause.code !== 'blob.not-found') throw cause;
      throw new AppError('unavailable', 'file.bytes-gone', 'The bytes were removed meanwhile; upload the file again.', {
        cause,
      });
    }
  }
}

function storedFile(events: readonly StoredEvent[]): FileResource {
  return (events[0]?.data as { file: FileResource } | undefined)?.file as FileResource;
}
