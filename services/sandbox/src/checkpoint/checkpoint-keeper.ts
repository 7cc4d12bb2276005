import { AppError, type CheckpointReply, type KeptCheckpoint, type RestoredFiles } from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { RunnerLink } from '../hub/runner-link.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';
import type { BaseCheckpoint, CheckpointStore } from './checkpoint.store.ts';
import type { Seal } from './seal.ts';

/** Packs that are collected in one go. */
const COLLECTED = 100;

export interface KeeperParts {
  readonly blobs: BlobStore;
  readonly store: CheckpointStore;
  readonly sandboxes: SandboxStore;
  readonly seal: Seal;
  readonly limits: { readonly entries: number; readonly bytes: number };
  /** Names and paths that are left out. */
  readonly exclude: readonly string[];
}

/**
 * Keeps the files of sandboxes outside of them, and gives them back. A runner can name packs of its own session's newest
 * checkpoint and those that it has just handed over, and no others (C3).
 */
/** What is kept is packed with what describes it, and packs that hold little of use are packed again. */
const PACKED_SHARE = 1.25;
const PACKED_BYTES = 64 * 1024 * 1024;

export class CheckpointKeeper {
  readonly #parts: KeeperParts;

  constructor(parts: KeeperParts) {
    this.#parts = parts;
  }

  /**
   * Keeps what the sandbox holds now. Resolves once that is durable and recorded. @throws AppError `checkpoint.over-limit`
   * when it holds more than may be kept, `checkpoint.failed`, `checkpoint.refused`, `checkpoint.old-runner`, what the blob
   * store says
   */
  async take(row: SandboxRow, link: RunnerLink): Promise<CheckpointReply & { readonly changed: boolean }> {
    const { store, limits, exclude } = this.#parts;
    if (!link.keepsFiles)
      throw new AppError(
        'rejected',
        'checkpoint.old-runner',
        'The sandbox was started by an earlier release, which keeps no files outside of it; the next one does.',
      );
    // The version first: what the log has by now had its effect before the runner looks.
    const [version, base] = await Promise.all([store.sessionVersion(row.session_id), store.newest(row)]);
    const given = new Map<string, number>();
    const kept: Promise<void>[] = [];
    let taking = 0;
    const { taken, fault } = await link.checkpoint(
      { base: base === null ? null : shown(base), exclude: [...exclude], limits },
      {
        take: (digest, bytes) => {
          if (given.has(digest)) return Promise.resolve();
          given.set(digest, bytes.length);
          taking += bytes.length;
          if (taking > limits.bytes * PACKED_SHARE + PACKED_BYTES) {
            link.close();
            return Promise.reject(
              new AppError('rejected', 'checkpoint.refused', 'The runner sent more than it may keep.'),
            );
          }
          const one = this.#keepPack(row.workspace_id, digest, bytes);
          kept.push(one);
          return one;
        },
        give: (digest) => this.#givePack(row.workspace_id, base, digest),
      },
    );
    if (taken === null) throw faultOf(fault, limits);
    let id: string | null = null;
    try {
      await Promise.all(kept);
      if (taken.roots === null && base?.ownId === base?.id && base !== null) {
        await store.stillHolds(base.id, version);
        id = base.id;
        return { checkpointId: id, throughVersion: version, changed: false };
      }
      const roots = taken.roots ?? base?.roots;
      const known = new Map(base?.packs.map(({ digest, bytes }) => [digest, bytes]));
      const strange = taken.packs.some(({ digest, bytes }) => (given.get(digest) ?? known.get(digest)) !== bytes);
      const sizes = new Map(taken.packs.map(({ digest, bytes }) => [digest, bytes]));
      const within = ({ pack, at, bytes }: { readonly pack: string; readonly at: number; readonly bytes: number }) =>
        at + bytes <= (sizes.get(pack) ?? 0);
      if (
        strange ||
        roots?.workspace === undefined ||
        roots.home === undefined ||
        !within(roots.workspace) ||
        !within(roots.home)
      )
        throw new AppError('rejected', 'checkpoint.refused', 'The runner named a pack that is not its own.');
      id = await store.record(row, { workspace: roots.workspace, home: roots.home }, taken, version);
      return { checkpointId: id, throughVersion: version, changed: true };
    } finally {
      link.settle(id);
    }
  }

  /**
   * Gives the sandbox its session's files where it has none, and says what it was given; null when it has files, and for
   * a runner of an earlier release, which has what it has.
   * @throws AppError `checkpoint.restore-failed`
   */
  async restore(row: SandboxRow, link: RunnerLink): Promise<RestoredFiles | null> {
    const { store, sandboxes } = this.#parts;
    if (!link.keepsFiles) return null;
    const base = await store.newest(row);
    const beganMs = Date.now();
    const { fresh, restored, fault } = await link.restore(base === null ? null : shown(base), (digest) =>
      this.#givePack(row.workspace_id, base, digest),
    );
    if (fault !== null)
      throw new AppError(
        'unavailable',
        'checkpoint.restore-failed',
        `The session's files could not be put into its new sandbox: ${fault}`,
      );
    const { journalId } = link;
    if (base === null || !restored) return fresh ? { journalId, checkpoint: null } : null;
    await sandboxes.record(row, 'sandbox.restored', {
      incarnation: row.incarnation,
      checkpoint_id: base.id,
      took_ms: Date.now() - beganMs,
    });
    return { journalId, checkpoint: { checkpointId: base.id, throughVersion: base.throughVersion } };
  }

  /** Removes packs that nobody needs any more; safe beside others that do the same. Returns how many. */
  async collect(): Promise<number> {
    const { store, blobs } = this.#parts;
    for (let count = 0; ; ) {
      const old = await store.collect(COLLECTED);
      // One whose removal fails here is never looked for again: it costs its room, and nothing else.
      for (const { workspaceId, blob } of old) await blobs.delete(workspaceId, blob);
      count += old.length;
      if (old.length < COLLECTED) return count;
    }
  }

  async #keepPack(workspaceId: string, digest: string, bytes: Buffer): Promise<void> {
    const { store, seal, blobs } = this.#parts;
    if (await store.refresh(workspaceId, digest)) return;
    const blob = await blobs.put(workspaceId, await seal.seal(workspaceId, digest, bytes));
    await store.putPack(workspaceId, { digest, bytes: bytes.length, blob: blob.digest });
  }

  async #givePack(workspaceId: string, base: BaseCheckpoint | null, digest: string): Promise<Buffer> {
    const { seal, blobs } = this.#parts;
    const pack = base?.blobs.get(digest);
    if (pack === undefined) throw new AppError('not-found', 'checkpoint.no-pack', 'There is no such pack.');
    return seal.open(workspaceId, digest, await blobs.read(workspaceId, pack.blob));
  }
}

function faultOf(
  fault: { code: 'entries' | 'bytes' | 'failed'; message: string } | null,
  limits: KeeperParts['limits'],
): AppError {
  if (fault?.code === 'entries' || fault?.code === 'bytes') {
    const bound = fault.code === 'entries' ? `${limits.entries} files` : `${limits.bytes} bytes`;
    return new AppError(
      'exhausted',
      'checkpoint.over-limit',
      `The sandbox holds more than ${bound}, so its files are not kept outside of it. Remove some, or have them left out.`,
    );
  }
  return new AppError(
    'unavailable',
    'checkpoint.failed',
    `The sandbox's files could not be kept: ${fault?.message ?? 'the runner does not say why'}`,
  );
}

/** What a runner is told of a checkpoint. */
function shown({ id, roots, packs }: BaseCheckpoint): KeptCheckpoint {
  return { id, roots, packs: [...packs] };
}
