import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import {
  type Aggregate,
  AppError,
  type Command,
  type CommandReply,
  commandSubject,
  type Idempotency,
  LIMITS,
  newId,
} from '@holdfast/contracts';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { keyOf, type Principal } from '../auth/authenticator.ts';
import { Query } from './query.ts';

const TRACEPARENT = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

/** One request on its way through an operation. */
export class Exchange<B = unknown> {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly principal: Principal;
  readonly body: B;
  readonly query: Query;

  constructor(request: FastifyRequest, reply: FastifyReply, principal: Principal, body: B) {
    this.request = request;
    this.reply = reply;
    this.principal = principal;
    this.body = body;
    this.query = new Query(request.url);
  }

  param(name: string): string {
    return (this.request.params as Record<string, string | undefined>)[name] ?? '';
  }

  header(name: string): string | undefined {
    const value = this.request.headers[name];
    return Array.isArray(value) ? value[0] : value;
  }

  /** How a repeat of this request is recognised (T5). */
  get idempotency(): Idempotency {
    return this.idempotencyOf(this.request.body);
  }

  /** The same for a body that was not parsed: `content` is what it came to. */
  idempotencyOf(content: unknown): Idempotency {
    const key = this.header('idempotency-key');
    if (key !== undefined && (key.length > LIMITS.idempotencyKeyChars || !/^[\x20-\x7e]+$/.test(key))) {
      throw new AppError(
        'invalid',
        'request.idempotency-key',
        `Idempotency-Key must be 1 to ${LIMITS.idempotencyKeyChars} printable characters.`,
      );
    }
    const count = Number(this.header('x-stainless-retry-count'));
    const path = `${this.request.method} ${this.request.url.split('?')[0]}`;
    const fingerprint = createHash('sha256')
      .update(`${this.principal.id}\n${path}\n`)
      .update(JSON.stringify(content ?? null))
      .digest('hex');
    return {
      key: key ?? null,
      attempt: Number.isInteger(count) && count > 0 && count < 100 ? count : 0,
      path,
      fingerprint,
    };
  }

  command<C>(body: C, idempotency: Idempotency | null): Command<C> {
    const traceparent = this.header('traceparent');
    return {
      commandId: newId('command'),
      workspaceId: this.principal.workspaceId,
      actor: {
        type:
          this.principal.bound !== null
            ? 'environment_key'
            : this.principal.kind === 'dashboard'
              ? 'dashboard'
              : 'api_key',
        id: keyOf(this.principal),
      },
      idempotency,
      traceparent: traceparent !== undefined && TRACEPARENT.test(traceparent) ? traceparent : null,
      body,
    };
  }
}

/** How long one process may take for a command before it is asked for again, perhaps of another one, in milliseconds. */
const PATIENCE_MS = 2_500;
/** Failures that leave open whether the command was, or can be, done. */
const UNANSWERED: ReadonlySet<string> = new Set([
  'bus.no-responders',
  'bus.timeout',
  'bus.unavailable',
  'command.late',
  'log.unavailable',
  'log.deadline',
]);
/** One of an older release cannot do it (L7); during an upgrade the next one that is asked may be a newer one. */
const NEWER_VERSION = 'event.newer-version';

/** Sends commands to the session service. */
export class Commands {
  readonly #bus: Bus;
  readonly #timeoutMs: number;

  constructor(bus: Bus, timeoutMs: number) {
    this.#bus = bus;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Asks until it is answered or the time is up. A command that was not answered may have been done by a process that
   * died; asked again it is known by its id, so it is done once.
   */
  async send<R>(aggregate: Aggregate, id: string, verb: string, command: Command): Promise<R> {
    const endsAtMs = Date.now() + this.#timeoutMs;
    for (let again = false; ; ) {
      try {
        const reply = await this.#bus.request<CommandReply>(
          commandSubject(aggregate, id, verb),
          again ? { ...command, again } : command,
          { deadlineAtMs: Math.min(endsAtMs, Date.now() + PATIENCE_MS), traceparent: command.traceparent },
        );
        return reply.body as R;
      } catch (error) {
        if (!(error instanceof AppError)) throw error;
        const refused = error.code === NEWER_VERSION;
        const pauseMs = refused ? 200 : 50;
        if (!(refused || UNANSWERED.has(error.code)) || Date.now() + pauseMs + 50 > endsAtMs) throw error;
        again ||= !refused && error.code !== 'bus.no-responders';
        await sleep(pauseMs);
      }
    }
  }
}
