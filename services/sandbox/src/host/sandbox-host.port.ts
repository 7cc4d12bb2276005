import type { Bus } from '@holdfast/bus';
import type { EnsureSandboxBody, EnsureSandboxReply, SandboxReason, ServiceBeat } from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { Logger } from '@holdfast/platform';
import type pg from 'pg';
import type { CheckpointKeeper } from '../checkpoint/checkpoint-keeper.ts';
import type { GatewayConnections } from '../door/model-door.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';

/** What every host works with. */
export interface HostParts {
  readonly bus: Bus;
  readonly pool: pg.Pool;
  readonly store: SandboxStore;
  readonly blobs: BlobStore;
  /** Files' bytes. */
  readonly fileBlobs: BlobStore;
  /** Keeps sandboxes' files. */
  readonly keeper: CheckpointKeeper;
  /** What every call's environment has. */
  readonly env: Readonly<Record<string, string>>;
  readonly logger: Logger;
  /** Where the model doors lead. */
  readonly connections: GatewayConnections;
}

/**
 * Runs sandboxes and serves their runners' links. Two adapters pass the same suite, `sandbox.e2e`: processes on one
 * machine, and agent-sandbox resources on a cluster. They share what a link is ({@link LinkedSandbox}) and how sandboxes
 * are recorded, and nothing of how one comes to run: a process is started by whoever may listen on its socket, a pod
 * dials any replica and is made by a controller that is told, again and again, what should be.
 */
export interface SandboxHost {
  readonly name: 'local' | 'kubernetes';
  /** How processes are isolated, for the event and the status page. */
  readonly isolation: string;
  /**
   * Makes the session's sandbox run, waits until its runner is linked, and claims it for the generation. `tell` hears why
   * it takes long. @throws AppError `unavailable` when that does not come true before the deadline, and what the adapter
   * says of this machine or cluster (`sandbox.isolation-unavailable`, `sandbox.disk-full`, `sandbox.start-failed`)
   */
  ensure(
    body: EnsureSandboxBody,
    deadlineAtMs: number,
    tell: (reason: SandboxReason) => void,
  ): Promise<EnsureSandboxReply>;
  /** Ends a sandbox whose session is over, and removes its files. `recorded` marks the row; it is never left out. */
  destroy(row: SandboxRow, recorded: () => Promise<void>): Promise<void>;
  figures(): ServiceBeat['figures'];
  /** Lets go of the sandboxes; they go on and are taken up by whoever serves them next. */
  close(): Promise<void>;
}
