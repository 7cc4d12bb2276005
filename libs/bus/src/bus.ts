import { AppError, type ErrorBody, isAppError, toAppError } from '@holdfast/contracts';
import {
  connect,
  headers,
  type Msg,
  type MsgHdrs,
  type NatsConnection,
  NoRespondersError,
  RequestError,
  type Subscription,
  TimeoutError,
} from '@nats-io/transport-node';

const DEADLINE = 'Holdfast-Deadline';
const TRACEPARENT = 'traceparent';
const DEFAULT_TIMEOUT_MS = 10_000;
/** Kept free in a message for the headers, which count as payload. */
const HEADER_BYTES = 1_024;

export interface BusOptions {
  /** `nats://host:port`, one or several separated by commas. */
  readonly servers: string;
  readonly user?: string;
  readonly password?: string;
  /** Shown by the server's monitoring. */
  readonly name: string;
  /** Told of lost and regained connections. */
  readonly onStatus?: (status: string, detail: string) => void;
}

export interface RequestOptions {
  /** Milliseconds until the caller gives up; default 10 s. */
  readonly timeoutMs?: number;
  /** Wall-clock time (ms) instead; the handler sees it too. */
  readonly deadlineAtMs?: number;
  readonly traceparent?: string | null;
}

export interface RequestContext {
  readonly subject: string;
  readonly deadlineAtMs: number;
  readonly traceparent: string | null;
}

/** A standing subscription. */
export interface Registration {
  /** Takes nothing new and waits for what is being handled. */
  stop(): Promise<void>;
}

type Reply = { readonly ok: unknown } | { readonly error: ErrorBody };

function context(message: Msg): RequestContext {
  const deadline = Number(message.headers?.get(DEADLINE));
  const traceparent = message.headers?.get(TRACEPARENT) ?? '';
  return {
    subject: message.subject,
    deadlineAtMs: Number.isFinite(deadline) && deadline > 0 ? deadline : Date.now() + DEFAULT_TIMEOUT_MS,
    traceparent: traceparent === '' ? null : traceparent,
  };
}

/**
 * NATS as the platform uses it. Requests and replies are JSON; errors cross as {@link AppError} bodies. `live.*` is
 * volatile: published to whoever listens now. The connection is kept for ever: it reconnects by itself.
 */
export class Bus {
  readonly connection: NatsConnection;
  /** Told of anything a handler threw that is no {@link AppError}. */
  onDefect: (subject: string, cause: unknown) => void = () => undefined;
  readonly #registrations = new Set<Registration>();

  constructor(connection: NatsConnection) {
    this.connection = connection;
  }

  get connected(): boolean {
    return !this.connection.isClosed() && this.connection.getServer() !== '';
  }

  /**
   * One answer to one question. @throws AppError what the handler threw; `bus.no-responders`, `bus.timeout` (kind
   * `unavailable`), `bus.too-large` (kind `invalid`) for a question that the server would not carry. A timeout says
   * nothing about whether the handler did its work.
   */
  async request<R>(subject: string, body: unknown, options: RequestOptions = {}): Promise<R> {
    const deadlineAtMs = options.deadlineAtMs ?? Date.now() + (options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    const timeout = Math.max(1, deadlineAtMs - Date.now());
    const payload = Buffer.from(JSON.stringify(body ?? null));
    const limit = (this.connection.info?.max_payload ?? Number.POSITIVE_INFINITY) - HEADER_BYTES;
    if (payload.length > limit) {
      throw new AppError(
        'invalid',
        'bus.too-large',
        `The request is too large: ${payload.length} bytes, of which the platform carries at most ${limit} in one piece.`,
      );
    }
    let message: Msg;
    try {
      message = await this.connection.request(subject, payload, {
        timeout,
        headers: requestHeaders(deadlineAtMs, options.traceparent),
      });
    } catch (error) {
      throw asBusError(error, subject);
    }
    return unwrap<R>(message);
  }

  /**
   * Several answers to one question, until the caller stops iterating. `silenceMs` without a message, or the deadline,
   * end it with `bus.timeout`; an error of the handler is thrown.
   */
  async *requestMany<R>(
    subject: string,
    body: unknown,
    options: { silenceMs: number; deadlineAtMs: number; traceparent?: string | null },
  ): AsyncGenerator<R, void, undefined> {
    const inbox = `_INBOX.many.${crypto.randomUUID()}`;
    const waiting: Msg[] = [];
    let wake: (() => void) | undefined;
    const subscription = this.connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error === null) waiting.push(message);
        wake?.();
      },
    });
    try {
      this.connection.publish(subject, JSON.stringify(body ?? null), {
        reply: inbox,
        headers: requestHeaders(options.deadlineAtMs, options.traceparent),
      });
      for (;;) {
        const message = waiting.shift();
        if (message !== undefined) {
          if (message.headers?.code === 503) throw noResponders(subject);
          yield unwrap<R>(message);
          continue;
        }
        const patienceMs = Math.min(options.silenceMs, options.deadlineAtMs - Date.now());
        if (patienceMs <= 0 || subscription.isClosed()) throw timedOut(subject);
        const woken = await new Promise<boolean>((resolve) => {
          const timer = setTimeout(() => resolve(false), patienceMs);
          wake = () => {
            clearTimeout(timer);
            resolve(true);
          };
        });
        wake = undefined;
        if (!woken) throw timedOut(subject);
      }
    } finally {
      subscription.unsubscribe();
    }
  }

  /** Answers questions; handlers run concurrently. With a queue name one of its members gets each question. */
  reply<B, R>(
    subject: string,
    options: { queue?: string },
    handler: (body: B, context: RequestContext) => Promise<R> | R,
  ): Registration {
    return this.replyMany<B, R>(subject, options, async (body, request, send) => send(await handler(body, request)));
  }

  /** Like {@link reply} with any number of answers, sent as they come; a throw is the last one. */
  replyMany<B, R>(
    subject: string,
    options: { queue?: string },
    handler: (body: B, context: RequestContext, send: (answer: R) => void) => Promise<void>,
  ): Registration {
    return this.#subscribe(subject, options.queue, async (message) => {
      const send = (reply: Reply): void => {
        message.respond(JSON.stringify(reply));
      };
      try {
        await handler(message.json<B>(), context(message), (answer) => send({ ok: answer ?? null }));
      } catch (error) {
        send({ error: toAppError(error).toBody() });
        if (!isAppError(error)) throw error;
      }
    });
  }

  /** Tells whoever listens now; `body` is sent as JSON, text as it is. Lost when nobody listens or the bus is away. */
  publishLive(subject: string, body: unknown): void {
    if (this.connection.isClosed() || this.connection.isDraining()) return;
    this.connection.publish(subject, typeof body === 'string' ? body : JSON.stringify(body ?? null));
  }

  /** Listens to live messages; `handler` must not throw. */
  subscribeLive<B>(subject: string, handler: (body: B, subject: string) => void): Registration {
    return this.#subscribe(subject, undefined, (message) => handler(message.json<B>(), message.subject));
  }

  /** Ends once every message sent so far has reached the server. */
  flush(): Promise<void> {
    return this.connection.flush();
  }

  /** Stops all registrations, waits for what is being handled, and closes. */
  async close(): Promise<void> {
    await Promise.all([...this.#registrations].map((registration) => registration.stop()));
    if (!this.connection.isClosed()) await this.connection.drain();
  }

  #subscribe(subject: string, queue: string | undefined, handle: (message: Msg) => Promise<void> | void): Registration {
    const running = new Set<Promise<void>>();
    const subscription: Subscription = this.connection.subscribe(subject, {
      ...(queue === undefined ? {} : { queue }),
      callback: (error, message) => {
        if (error !== null) return;
        const work = (async () => handle(message))()
          .catch((cause: unknown) => this.onDefect(subject, cause))
          .finally(() => running.delete(work));
        running.add(work);
      },
    });
    const registration: Registration = {
      stop: async () => {
        this.#registrations.delete(registration);
        if (!subscription.isClosed()) subscription.unsubscribe();
        await Promise.all(running);
      },
    };
    this.#registrations.add(registration);
    return registration;
  }
}

/** Connects, waiting for the server as long as it takes; afterwards it reconnects for ever. */
export async function connectBus(options: BusOptions): Promise<Bus> {
  const connection = await connect({
    servers: options.servers.split(','),
    name: options.name,
    ...(options.user ? { user: options.user, pass: options.password ?? '' } : {}),
    maxReconnectAttempts: -1,
    reconnectTimeWait: 250,
    reconnectJitter: 100,
    waitOnFirstConnect: true,
    // A server that ends while it greets may leave the greeting unanswered; the client's own 20 s would hold up a reconnect.
    timeout: 3_000,
    // Else two refusals in a row, as while passwords are being changed, would end the connection for good.
    ignoreAuthErrorAbort: true,
    pingInterval: 5_000,
    maxPingOut: 3,
    inboxPrefix: '_INBOX',
  });
  void (async () => {
    for await (const status of connection.status()) {
      if (status.type === 'disconnect' || status.type === 'reconnect' || status.type === 'error') {
        options.onStatus?.(status.type, status.type === 'error' ? status.error.message : '');
      }
    }
  })();
  return new Bus(connection);
}

function requestHeaders(deadlineAtMs: number, traceparent: string | null | undefined): MsgHdrs {
  const all = headers();
  all.set(DEADLINE, String(deadlineAtMs));
  if (traceparent != null) all.set(TRACEPARENT, traceparent);
  return all;
}

function unwrap<R>(message: Msg): R {
  const reply = message.json<Reply>();
  if ('error' in reply) throw AppError.fromBody(reply.error);
  return reply.ok as R;
}

function noResponders(subject: string): AppError {
  return new AppError(
    'unavailable',
    'bus.no-responders',
    'The service that answers this is not running; try again shortly.',
    {
      details: { subject },
    },
  );
}
function timedOut(subject: string): AppError {
  return new AppError('unavailable', 'bus.timeout', 'The service did not answer in time; try again shortly.', {
    details: { subject },
  });
}

function asBusError(error: unknown, subject: string): AppError {
  if (error instanceof NoRespondersError || (error instanceof RequestError && error.isNoResponders()))
    return noResponders(subject);
  if (error instanceof TimeoutError) return timedOut(subject);
  return new AppError('unavailable', 'bus.unavailable', 'The message bus cannot be reached; try again shortly.', {
    cause: error,
  });
}
