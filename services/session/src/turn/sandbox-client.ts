import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import {
  AppError,
  type CancelBody,
  type CheckpointBody,
  type CheckpointReply,
  type CheckpointUpdate,
  commandSubject,
  type EnsureSandboxBody,
  type EnsureSandboxReply,
  type EnsureSandboxUpdate,
  type ExecBody,
  type ExecReply,
  type FoundOutputs,
  type HarnessEvent,
  type HarvestBody,
  type HarvestUpdate,
  isAppError,
  type PermitBody,
  type PromptBody,
  type PromptReply,
  type RestoredFiles,
  type SandboxReason,
  sandboxLinkSubject,
  type ToolOutcome,
} from '@holdfast/contracts';

/** A link that sends nothing for so long is taken as gone; it says `alive` every second. */
const LINK_SILENCE_MS = 5_000;
const RETRY_MS = 250;
const CANCEL_WAIT_MS = 5_000;
/** Outputs may be many and large; a sandbox that nobody serves for so long has none to give. */
const HARVEST_WAIT_MS = 10 * 60_000;
const HARVEST_LOST_MS = 5_000;
/** A stream of events is asked for anew at least so often. */
const PROMPT_MS = 24 * 3_600_000;
/** A sandbox that nobody serves for so long is taken as lost, and with it what is not kept. */
const CHECKPOINT_LOST_MS = 20_000;
const CHECKPOINT_WAIT_MS = 120_000;

/** One call on its way to a sandbox: a tool call, or a prompt for a harness. */
export interface Dispatch {
  readonly ensure: EnsureSandboxBody;
  /** Where the session's calls went so far; tried first. */
  readonly known: EnsureSandboxReply | null;
  /** The journal that the call may have been sent under already; null = never sent. */
  readonly sentUnder: string | null;
  /** How long to wait for a sandbox, in milliseconds. */
  readonly waitMs: number;
  /** Told, again and again, why a sandbox cannot be had yet. */
  readonly onWaiting: (reason: SandboxReason) => void;
  /** The sandbox began without the session's files, and was given these before the call. */
  readonly onRestored: (files: RestoredFiles) => Promise<void>;
  /** Must be durable before the call is sent. */
  readonly onAttach: (sandbox: EnsureSandboxReply) => Promise<void>;
}

/** What a call came to where the sandbox itself could not say. */
export type Undelivered = { readonly unavailable: string } | { readonly unknown: true };

/** Nobody heard it: no replica holds a link, or the one that did has none any more, or no files to run it on. */
const NOT_SENT: ReadonlySet<string> = new Set(['bus.no-responders', 'sandbox.not-linked', 'checkpoint.restore-failed']);
/** So often a sandbox is tried that its files cannot be put into. */
const RESTORES = 3;

const unknownOutcome: ToolOutcome = {
  outcome: 'unknown',
  isError: true,
  text: 'Outcome unknown: the sandbox was lost while this ran. It may or may not have had its effect; check before doing it again.',
  fullOutput: null,
};

/**
 * Sends tool calls to sandboxes. A call keeps its id over every retry, so that the runner's journal makes it run at most
 * once; a call that may have been sent under a journal that is gone is closed as unknown, never sent again.
 */
export class SandboxClient {
  readonly #bus: Bus;

  constructor(bus: Bus) {
    this.#bus = bus;
  }

  /** Runs a tool call. @throws AppError `sandbox.stale-generation` when a newer worker holds the session; the signal's reason. */
  async exec(
    call: Dispatch,
    body: Omit<ExecBody, 'journalId'>,
    signal: AbortSignal,
  ): Promise<ToolOutcome | { unavailable: string }> {
    const outcome = await this.#deliver(call, signal, (target, onAlive) =>
      this.#exec(target, body, call.onRestored, signal, onAlive),
    );
    return 'unknown' in outcome ? unknownOutcome : outcome;
  }

  /**
   * Hands a prompt to a harness and tells what it does, each event once and in order however often the link is lost.
   * `body` is asked for when the sandbox is known that it goes to; `onEvent` is waited for before the next.
   * @throws as {@link exec}
   */
  async prompt(
    call: Dispatch,
    body: () => Omit<PromptBody, 'journalId'>,
    signal: AbortSignal,
    onEvent: (event: HarnessEvent, sequence: number) => Promise<void>,
  ): Promise<Extract<PromptReply, { kind: 'done' }> | Undelivered> {
    let { after } = body();
    return this.#deliver(call, signal, async ({ sandboxId, journalId }, onAlive) => {
      const replies = this.#bus.requestMany<PromptReply>(
        sandboxLinkSubject(sandboxId, 'prompt'),
        { ...body(), journalId, after } satisfies PromptBody,
        { silenceMs: LINK_SILENCE_MS, deadlineAtMs: Date.now() + PROMPT_MS },
      );
      for await (const reply of untilAborted(replies, signal)) {
        onAlive();
        if (reply.kind === 'done') return reply;
        if (reply.kind === 'restored') {
          await call.onRestored(reply.files);
          continue;
        }
        if (reply.kind === 'alive' || reply.sequence <= after) continue;
        // One was lost on the way: it is asked for again.
        if (reply.sequence > after + 1) break;
        await onEvent(reply.event, reply.sequence);
        after = reply.sequence;
      }
      throw new AppError('unavailable', 'sandbox.link-ended', 'The sandbox broke off.');
    });
  }

  /** Answers a harness's call that asks; best effort, a lost answer is given again. */
  async permit(sandboxId: string, body: PermitBody): Promise<void> {
    await this.#bus.request<null>(sandboxLinkSubject(sandboxId, 'permit'), body, { timeoutMs: CANCEL_WAIT_MS });
  }

  async #deliver<R>(
    call: Dispatch,
    signal: AbortSignal,
    send: (target: EnsureSandboxReply, onAlive: () => void) => Promise<R>,
  ): Promise<R | Undelivered> {
    let target = call.known;
    let sentUnder = call.sentUnder;
    let unrestored = 0;
    let patientUntilMs = Date.now() + call.waitMs;
    // At the end of patience it says more than that an answer did not come.
    let waitsFor: string | null = null;
    const onWaiting = (reason: SandboxReason): void => {
      waitsFor = reason.message;
      call.onWaiting(reason);
    };
    for (;;) {
      signal.throwIfAborted();
      try {
        if (target === null) {
          target = await this.#ensure({ ...call, onWaiting }, patientUntilMs, signal);
        }
        if (sentUnder !== null && sentUnder !== target.journalId) return { unknown: true };
        await call.onAttach(target);
        // A call that was cut meanwhile is closed in the log, or will be: it must not be sent any more (T1).
        signal.throwIfAborted();
        const before: string | null = sentUnder;
        sentUnder = target.journalId;
        try {
          return await send(target, () => {
            patientUntilMs = Date.now() + call.waitMs;
          });
        } catch (error) {
          if (isAppError(error) && NOT_SENT.has(error.code)) sentUnder = before;
          throw error;
        }
      } catch (error) {
        signal.throwIfAborted();
        if (!isAppError(error) || error.code === 'sandbox.stale-generation') throw error;
        // A call that may have been sent is never said not to have run.
        if (error.kind !== 'unavailable')
          return sentUnder === null ? { unavailable: error.message } : { unknown: true };
        if (Date.now() + RETRY_MS >= patientUntilMs) {
          return sentUnder === null
            ? { unavailable: `No sandbox could be had: ${waitsFor ?? error.message}` }
            : { unknown: true };
        }
        if (error.code === 'checkpoint.restore-failed' && ++unrestored === RESTORES)
          return sentUnder === null ? { unavailable: error.message } : { unknown: true };
        // Where the last call went nobody answers any more: it rests, and is woken without delay.
        const rests = target !== null && target === call.known && NOT_SENT.has(error.code);
        target = null;
        if (!rests) await sleep(RETRY_MS);
      }
    }
  }

  async #ensure(call: Dispatch, deadlineAtMs: number, signal: AbortSignal): Promise<EnsureSandboxReply> {
    const updates = this.#bus.requestMany<EnsureSandboxUpdate>(
      commandSubject('sandbox', call.ensure.sessionId, 'ensure'),
      call.ensure,
      { silenceMs: LINK_SILENCE_MS, deadlineAtMs },
    );
    for await (const update of untilAborted(updates, signal)) {
      if (update.kind === 'ready') return { sandboxId: update.sandboxId, journalId: update.journalId };
      if (update.reason !== null) call.onWaiting(update.reason);
    }
    throw new AppError('unavailable', 'sandbox.starting', 'The sandbox is still starting.');
  }

  async #exec(
    { sandboxId, journalId }: EnsureSandboxReply,
    body: Omit<ExecBody, 'journalId'>,
    onRestored: Dispatch['onRestored'],
    signal: AbortSignal,
    onAlive: () => void,
  ): Promise<ToolOutcome> {
    const replies = this.#bus.requestMany<ExecReply>(
      sandboxLinkSubject(sandboxId, 'exec'),
      { ...body, journalId } satisfies ExecBody,
      {
        silenceMs: LINK_SILENCE_MS,
        deadlineAtMs: Date.now() + body.timeoutMs + 60_000,
      },
    );
    for await (const reply of untilAborted(replies, signal)) {
      if (reply.kind === 'done') return reply.result;
      if (reply.kind === 'restored') await onRestored(reply.files);
      onAlive();
    }
    throw new AppError('unavailable', 'sandbox.link-ended', 'The sandbox broke off.');
  }

  /**
   * Puts the session's outputs into the blob store; null when the sandbox could not be reached for a while.
   * @throws AppError `sandbox.stale-generation`; the signal's reason
   */
  async harvest(sandboxId: string, body: HarvestBody, signal: AbortSignal): Promise<FoundOutputs | null> {
    const deadlineAtMs = Date.now() + HARVEST_WAIT_MS;
    for (let heardAtMs = Date.now(); ; ) {
      signal.throwIfAborted();
      try {
        const replies = this.#bus.requestMany<HarvestUpdate>(sandboxLinkSubject(sandboxId, 'harvest'), body, {
          silenceMs: LINK_SILENCE_MS,
          deadlineAtMs,
        });
        for await (const reply of untilAborted(replies, signal)) {
          if (reply.kind === 'found') return reply;
          heardAtMs = Date.now();
        }
      } catch (error) {
        signal.throwIfAborted();
        if (!isAppError(error) || error.kind !== 'unavailable') throw error;
      }
      if (Date.now() + RETRY_MS >= Math.min(deadlineAtMs, heardAtMs + HARVEST_LOST_MS)) return null;
      await sleep(RETRY_MS);
    }
  }

  /**
   * Keeps the sandbox's files (C1); resolves once that is durable, or with why it cannot be done.
   * @throws AppError `sandbox.stale-generation`; the signal's reason
   */
  async checkpoint(
    sandboxId: string,
    body: CheckpointBody,
    signal: AbortSignal,
  ): Promise<CheckpointReply | { readonly code: string; readonly message: string }> {
    const deadlineAtMs = Date.now() + CHECKPOINT_WAIT_MS;
    let lostAtMs = Date.now() + CHECKPOINT_LOST_MS;
    for (;;) {
      signal.throwIfAborted();
      try {
        const replies = this.#bus.requestMany<CheckpointUpdate>(sandboxLinkSubject(sandboxId, 'checkpoint'), body, {
          silenceMs: LINK_SILENCE_MS,
          deadlineAtMs,
        });
        for await (const reply of untilAborted(replies, signal)) {
          if (reply.kind === 'kept') return reply.checkpoint;
          lostAtMs = Date.now() + CHECKPOINT_LOST_MS;
        }
        throw new AppError('unavailable', 'sandbox.link-ended', 'The sandbox broke off.');
      } catch (error) {
        signal.throwIfAborted();
        if (!isAppError(error) || error.code === 'sandbox.stale-generation') throw error;
        const { code, kind, message } = error;
        const over = Date.now() + RETRY_MS >= Math.min(deadlineAtMs, lostAtMs);
        if (kind !== 'unavailable' || over)
          return { code, message: `What was done to files since they were kept last is not kept: ${message}` };
        await sleep(RETRY_MS);
      }
    }
  }

  /** Stops a call or makes sure that it never starts (a tombstone, T1); null when the sandbox cannot be reached. */
  async cancel(sandboxId: string, body: CancelBody): Promise<ToolOutcome | null> {
    try {
      return await this.#bus.request<ToolOutcome>(sandboxLinkSubject(sandboxId, 'cancel'), body, {
        timeoutMs: CANCEL_WAIT_MS,
      });
    } catch (error) {
      if (isAppError(error) && error.code !== 'sandbox.stale-generation') return null;
      throw error;
    }
  }
}

/** What comes until the signal's abort, whose reason is thrown. */
async function* untilAborted<T>(replies: AsyncGenerator<T>, signal: AbortSignal): AsyncGenerator<T, void> {
  const aborted = new Promise<never>((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
  aborted.catch(() => undefined);
  try {
    for (;;) {
      const next = await Promise.race([replies.next(), aborted]);
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    void replies.return(undefined);
  }
}
