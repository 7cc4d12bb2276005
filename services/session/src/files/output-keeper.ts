import { createHash } from 'node:crypto';
import {
  type Command,
  type CreateFileBody,
  type FoundOutputs,
  ID_PREFIXES,
  isAppError,
  type LeftOutOutput,
  mimeTypeOf,
  nameOfPath,
} from '@holdfast/contracts';
import { derivedEventId, type EventLog } from '@holdfast/event-store';
import type { FileCommands } from './file.commands.ts';

export interface KeptOutput {
  readonly fileId: string;
  readonly path: string;
  readonly digest: string;
  readonly sizeBytes: number;
}

/**
 * Makes files of what a session left in its outputs folder. One content at one path of one session is one file, however
 * often it is found, and also when the file was deleted since.
 */
export class OutputKeeper {
  readonly #log: EventLog;
  readonly #files: FileCommands;
  readonly #worker: string;

  constructor(log: EventLog, files: FileCommands, worker: string) {
    this.#log = log;
    this.#files = files;
    this.#worker = worker;
  }

  /** The files that are new, and what could not become one. */
  async keep(
    session: { readonly id: string; readonly workspaceId: string },
    found: FoundOutputs,
  ): Promise<{ kept: KeptOutput[]; leftOut: LeftOutOutput[] }> {
    const wanted = found.files.map((file) => {
      const key = createHash('sha256').update(`${session.id}\n${file.digest}\n${file.path}`).digest('hex').slice(0, 32);
      return { ...file, commandId: `${ID_PREFIXES.command}_${key}`, fileId: `${ID_PREFIXES.file}_${key}` };
    });
    const earlier = await this.#log.findEvents(wanted.map(({ commandId }) => derivedEventId(commandId, 0)));
    const known = new Set(earlier.map(({ id }) => id));
    const kept: KeptOutput[] = [];
    const leftOut = [...found.leftOut];
    for (const { commandId, fileId, path, digest, sizeBytes } of wanted) {
      if (known.has(derivedEventId(commandId, 0))) continue;
      const name = nameOfPath(path);
      const command: Command<CreateFileBody> = {
        commandId,
        workspaceId: session.workspaceId,
        actor: { type: 'service', id: this.#worker },
        idempotency: null,
        traceparent: null,
        // Another worker may be making it too.
        again: true,
        body: {
          filename: name,
          mimeType: mimeTypeOf(name),
          digest,
          sizeBytes,
          expiresInSeconds: null,
          output: { sessionId: session.id, path },
        },
      };
      try {
        await this.#files.create(fileId, command);
        kept.push({ fileId, path, digest, sizeBytes });
      } catch (error) {
        // Trying again would not help: the sandbox service would find the same.
        if (!isAppError(error) || (error.kind !== 'invalid' && error.code !== 'file.bytes-gone')) throw error;
        leftOut.push({ path, reason: error.message });
      }
    }
    return { kept, leftOut };
  }
}
