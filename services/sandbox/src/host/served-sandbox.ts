import { createHash, randomBytes } from 'node:crypto';
import type { Bus, Registration } from '@holdfast/bus';
import {
  AppError,
  type CancelBody,
  type ClaimBody,
  EXEC_ALIVE_MS,
  type ExecBody,
  type ExecReply,
  sandboxLinkSubject,
  TOOL_OUTPUT_CHARS,
  type ToolOutcome,
} from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import type { Logger } from '@holdfast/platform';
import { EgressProxy } from '../egress/egress-proxy.ts';
import { Hub } from '../hub/hub.ts';
import type { SandboxProvider, SandboxSpec } from '../provider/sandbox-provider.port.ts';
import type { SandboxRow, SandboxStore } from '../store/sandbox.store.ts';

export interface ServedParts {
  readonly bus: Bus;
  readonly store: SandboxStore;
  readonly provider: SandboxProvider;
  readonly blobs: BlobStore;
  readonly env: Readonly<Record<string, string>>;
  readonly logger: Logger;
  readonly startMs: number;
  readonly workspaceBytes: number;
}

/** The folder name of a context: nothing of the key itself reaches a path. */
function contextId(row: SandboxRow): string | null {
  if (row.context_key === null) return null;
  return createHash('sha256')
    .update(JSON.stringify([row.workspace_id, row.environment_id, row.context_key]))
    .digest('hex')
    .slice(0, 32);
}

/** A sandbox that this replica serves: its hub, its proxy and the subjects that lead to it. */
export class ServedSandbox {
  readonly row: SandboxRow;
  readonly spec: SandboxSpec;
  lastUsedMs = Date.now();
  readonly #parts: ServedParts;
  #hub: Hub | null = null;
  #proxy: EgressProxy | null = null;
  #registrations: Registration[] = [];
  #linked: (() => void)[] = [];
  #incarnation: number;
  #closed = false;

  constructor(row: SandboxRow, parts: ServedParts) {
    this.row = row;
    this.#parts = parts;
    this.#incarnation = row.incarnation;
    this.spec = {
      id: row.id,
      workspaceId: row.workspace_id,
      sessionId: row.session_id,
      contextId: contextId(row),
      serial: row.serial,
    };
  }

  get busy(): boolean {
    return this.#hub?.busy ?? false;
  }
  get linked(): boolean {
    return this.#hub?.linked ?? false;
  }

  /** Listens, starts the runner unless it runs, and waits for its link. Returns the journal's id. */
  async ensure(generation: number): Promise<string> {
    this.lastUsedMs = Date.now();
    const { provider, startMs } = this.#parts;
    const running = (await provider.observe(this.spec)) === 'running';
    if (this.#hub === null || !running) await this.#open(running);
    await this.#untilLinked(startMs);
    const journalId = this.#hub?.journalId ?? null;
    if (journalId === null)
      throw new AppError('unavailable', 'sandbox.link-lost', 'The link to the sandbox was lost; it is dialled again.');
    await this.#hub?.claim(generation);
    return journalId;
  }

  async #open(running: boolean): Promise<void> {
    const { provider, store, env, logger } = this.#parts;
    await this.#closeLink();
    let { token_hash: tokenHash, public_key: publicKey } = this.row;
    let token: string | null = null;
    if (!running || tokenHash === null) {
      token = randomBytes(32).toString('base64url');
      tokenHash = createHash('sha256').update(token).digest('hex');
      publicKey = null;
      await store.begin(this.row.id, tokenHash);
      this.#incarnation += 1;
    }
    const linkDir = provider.linkDir(this.spec);
    // The folder is made by the provider before the runner starts; sockets must stand before it dials.
    const hub = new Hub({
      linkDir,
      proof: { tokenHash, publicKey },
      env,
      onLinked: async ({ journalId, publicKey: key }) => {
        await store.ready(this.row, {
          journalId,
          publicKey: key,
          isolation: provider.isolation,
          incarnation: this.#incarnation,
        });
        for (const wake of this.#linked.splice(0)) wake();
      },
      onLost: () => logger.info({ sandbox: this.row.id }, 'the link was lost'),
      onRefused: (reason) => {
        logger.warn({ sandbox: this.row.id, reason }, 'a link was refused');
        void store.record(this.row, 'sandbox.link_refused', { reason }).catch(() => undefined);
      },
    });
    const proxy = new EgressProxy(this.row.environment.networking, (decision) => {
      void store.record(this.row, 'sandbox.egress_decided', { ...decision }).catch(() => undefined);
    });
    await provider.prepareLink(this.spec);
    await hub.listen();
    await proxy.listen(linkDir);
    this.#hub = hub;
    this.#proxy = proxy;
    this.#subscribe();
    if (token !== null) await provider.ensure(this.spec, token);
  }

  async #untilLinked(timeoutMs: number): Promise<void> {
    if (this.linked && this.#hub?.journalId != null) return;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(
          new AppError(
            'unavailable',
            'sandbox.start-failed',
            `The sandbox's runner did not link within ${timeoutMs} ms.`,
          ),
        );
      }, timeoutMs);
      this.#linked.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #subscribe(): void {
    if (this.#registrations.length > 0) return;
    const { bus } = this.#parts;
    const { id } = this.row;
    this.#registrations = [
      bus.replyMany<ExecBody, ExecReply>(sandboxLinkSubject(id, 'exec'), {}, (body, _context, send) =>
        this.#exec(body, send),
      ),
      bus.reply<ClaimBody, object>(sandboxLinkSubject(id, 'claim'), {}, async ({ generation }) => {
        await this.#live().claim(generation);
        return {};
      }),
      bus.reply<CancelBody, ToolOutcome>(sandboxLinkSubject(id, 'cancel'), {}, async ({ callId, generation }) => ({
        ...(await this.#live().cancel(callId, generation)),
        fullOutput: null,
      })),
    ];
  }

  #live(): Hub {
    if (this.#hub === null) throw new AppError('unavailable', 'sandbox.link-lost', 'The sandbox is not running.');
    return this.#hub;
  }

  async #exec(body: ExecBody, send: (reply: ExecReply) => void): Promise<void> {
    this.lastUsedMs = Date.now();
    const alive = setInterval(() => send({ kind: 'alive' }), EXEC_ALIVE_MS);
    try {
      const { result, whole } = await this.#live().exec(body);
      const fullOutput = whole === null ? null : await this.#parts.blobs.put(this.row.workspace_id, whole);
      const text = result.text.length > TOOL_OUTPUT_CHARS + 500 ? result.text.slice(0, TOOL_OUTPUT_CHARS) : result.text;
      send({ kind: 'done', result: { ...result, text, fullOutput } });
    } finally {
      clearInterval(alive);
      this.lastUsedMs = Date.now();
    }
  }

  /** Kills what writes when the workspace is above its bound. */
  async watchUsage(): Promise<void> {
    if (this.#hub === null || !this.busy) return;
    const used = await this.#parts.provider.usage(this.spec);
    if (used > this.#parts.workspaceBytes) {
      this.#hub.overLimit(
        `The workspace holds ${used} bytes, above its bound of ${this.#parts.workspaceBytes}; what wrote to it was killed. Remove files first.`,
      );
    }
  }

  async #closeLink(): Promise<void> {
    const hub = this.#hub;
    const proxy = this.#proxy;
    this.#hub = null;
    this.#proxy = null;
    await hub?.close();
    await proxy?.close();
  }

  /** Lets go of it without touching its processes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const registration of this.#registrations.splice(0)) void registration.stop();
    await this.#closeLink();
  }
}
