import { type Chat, type ChatFrame, foldChat, type Session, startChat } from '@holdfast/contracts';
import { createParser } from 'eventsource-parser';
import { ApiError, api, messageOf, toApiError } from './api.ts';

export type Connection = 'connecting' | 'live' | 'reconnecting' | 'ended';
export interface ChatSnapshot {
  readonly chat: Chat | null;
  readonly connection: Connection;
  /** What cannot be mended by connecting again. */
  readonly failure: ApiError | null;
}

/** The server pings more often than this; a silent connection is dead. */
const SILENCE_MS = 45_000;
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 5_000;
const DRAW_MS = 33;
/** While more frames than this come between two looks the log is being replayed: it is drawn once, when it is there. */
const REPLAY_FRAMES = 100;
const MAX_HELD_LOOKS = 15;
/**
 * A browser opens six connections to one host, over all of its tabs: a tab that nobody sees gives its own back, and only
 * looks in so often.
 */
const HIDDEN_HOLD_MS = 2_000;
const HIDDEN_PAUSE_MS = 10_000;

/**
 * One session as it happens: reads the event stream from the start of the log, folds it, and after any break goes on at
 * the last version it has, so that nothing is lost or doubled. Made for `useSyncExternalStore`.
 */
export class SessionStream {
  readonly #sessionId: string;
  readonly #listeners = new Set<() => void>();
  #snapshot: ChatSnapshot = { chat: null, connection: 'connecting', failure: null };
  #waiting: ChatFrame[] = [];
  #drawing: ReturnType<typeof setTimeout> | null = null;
  #abort: AbortController | null = null;

  constructor(sessionId: string) {
    this.#sessionId = sessionId;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#abort === null) void this.#run((this.#abort = new AbortController()));
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size > 0) return;
      this.#abort?.abort();
      this.#abort = null;
    };
  };
  readonly snapshot = (): ChatSnapshot => this.#snapshot;

  async #run(run: AbortController): Promise<void> {
    let retryMs = FIRST_RETRY_MS;
    while (!run.signal.aborted) {
      try {
        if (this.#snapshot.chat === null) {
          const session = await api<Session>(`/v1/sessions/${this.#sessionId}`, { signal: run.signal });
          this.#change({ chat: startChat(session) });
        }
        await this.#read(run, () => {
          retryMs = FIRST_RETRY_MS;
        });
      } catch (error) {
        if (run.signal.aborted) return;
        if (error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429) {
          this.#draw();
          return this.#change({ failure: error, connection: 'ended' });
        }
      }
      if (run.signal.aborted) return;
      this.#draw();
      const view = this.#snapshot.chat?.view;
      if (view?.deleted === true || view?.status === 'terminated') return this.#change({ connection: 'ended' });
      if (document.hidden) {
        await pause(HIDDEN_PAUSE_MS, run.signal);
        continue;
      }
      this.#change({ connection: 'reconnecting' });
      await pause(retryMs * (0.75 + Math.random() / 2), run.signal);
      retryMs = Math.min(retryMs * 2, LAST_RETRY_MS);
    }
  }

  /** Reads one connection until it ends. */
  async #read(run: AbortController, onData: () => void): Promise<void> {
    const connection = new AbortController();
    const stop = () => connection.abort();
    run.signal.addEventListener('abort', stop);
    let watchdog = setTimeout(stop, SILENCE_MS);
    let unseen: ReturnType<typeof setTimeout> | undefined;
    const onVisibility = () => {
      clearTimeout(unseen);
      if (document.hidden) unseen = setTimeout(stop, HIDDEN_HOLD_MS);
    };
    document.addEventListener('visibilitychange', onVisibility);
    // A connection that the network took is not told so; the browser is.
    window.addEventListener('offline', stop);
    onVisibility();
    try {
      const cursor = this.#snapshot.chat?.view.version ?? 0;
      const response = await fetch(
        `/api/v1/sessions/${this.#sessionId}/events/stream?event_deltas[]=agent.message&event_deltas[]=x_agent.thinking&after=${cursor}`,
        { signal: connection.signal, headers: { accept: 'text/event-stream' } },
      );
      if (!response.ok || response.body === null) throw await toApiError(response);
      this.#change({ connection: 'live' });
      const parser = createParser({
        onEvent: ({ event, id, data }) => {
          if (event === 'ping' || event === 'error') return;
          this.#add({ version: id === undefined ? null : Number(id), event: JSON.parse(data) as ChatFrame['event'] });
        },
      });
      for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE_MS);
        onData();
        parser.feed(text);
      }
    } finally {
      clearTimeout(watchdog);
      clearTimeout(unseen);
      document.removeEventListener('visibilitychange', onVisibility);
      window.removeEventListener('offline', stop);
      run.signal.removeEventListener('abort', stop);
    }
  }

  /** Frames are folded in batches, so that a fast model or a long replay does not draw the page for each. */
  #add(frame: ChatFrame): void {
    this.#waiting.push(frame);
    if (this.#drawing === null) this.#look(0);
  }

  #look(held: number): void {
    const before = this.#waiting.length;
    this.#drawing = setTimeout(() => {
      if (this.#waiting.length - before > REPLAY_FRAMES && held < MAX_HELD_LOOKS) this.#look(held + 1);
      else this.#draw();
    }, DRAW_MS);
  }

  #draw(): void {
    if (this.#drawing !== null) clearTimeout(this.#drawing);
    this.#drawing = null;
    const frames = this.#waiting;
    this.#waiting = [];
    const { chat } = this.#snapshot;
    if (chat === null || frames.length === 0) return;
    try {
      this.#change({ chat: foldChat(chat, frames) });
    } catch (error) {
      this.#change({ failure: new ApiError(0, 'defect', messageOf(error)), connection: 'ended' });
      this.#abort?.abort();
    }
  }

  #change(part: Partial<ChatSnapshot>): void {
    this.#snapshot = { ...this.#snapshot, ...part };
    for (const listener of this.#listeners) listener();
  }
}

/** Waits; no longer than until the browser is online again or its tab is looked at. */
function pause(waitMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const seen = () => {
      if (!document.hidden) over();
    };
    const over = () => {
      clearTimeout(timer);
      window.removeEventListener('online', over);
      document.removeEventListener('visibilitychange', seen);
      signal.removeEventListener('abort', over);
      resolve();
    };
    const timer = setTimeout(over, waitMs);
    window.addEventListener('online', over);
    document.addEventListener('visibilitychange', seen);
    signal.addEventListener('abort', over);
  });
}
