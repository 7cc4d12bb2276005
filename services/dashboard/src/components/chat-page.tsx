'use client';
import { type Chat, newId, waitsFor } from '@holdfast/contracts';
import { ArrowDown, CloudOff } from 'lucide-react';
import {
  useCallback,
  useDeferredValue,
  useEffect,
  useEffectEvent,
  useLayoutEffect,
  useRef,
  useState,
  useSyncExternalStore,
} from 'react';
import { toast } from 'sonner';
import { apiPersistent, messageOf } from '../lib/api.ts';
import { useFork } from '../lib/forks.ts';
import { number } from '../lib/format.ts';
import { SessionStream } from '../lib/session-stream.ts';
import { ChatHeader } from './chat-header.tsx';
import { ChatEntry, Note, type SendEvents, Thinking, Waiting, Working } from './chat-items.tsx';
import { Composer } from './composer.tsx';
import { Markdown } from './markdown.tsx';
import { Button, Failure } from './ui.tsx';

/** So many entries are drawn at first, and so many more when somebody reads up; the longest session stays quick. */
const WINDOW = 60;
/** So near the beginning of what is drawn, more is. */
const NEAR_START_PX = 600;
/** So near the end, the reader is taken to be at it. */
const NEAR_END_PX = 48;
const BACK = { href: '/sessions', text: 'All sessions' };

export function ChatPage({ id }: { id: string }) {
  const [stream] = useState(() => new SessionStream(id));
  const { chat, connection, failure } = useSyncExternalStore(stream.subscribe, stream.snapshot, stream.snapshot);
  const send = useCallback<SendEvents>(
    async (events) => {
      try {
        await apiPersistent(`/v1/sessions/${id}/events`, { events }, newId('command'));
      } catch (error) {
        toast.error(messageOf(error));
        throw error;
      }
    },
    [id],
  );
  useTabTitle(chat);
  if (failure !== null && chat === null)
    return <Failure error={failure} onRetry={() => location.reload()} back={BACK} />;
  if (chat === null) return <Opening isCut={connection === 'reconnecting'} />;
  if (chat.view.deleted) return <Failure error={new Error('This session was deleted.')} back={BACK} />;
  return (
    <div className="flex min-h-0 flex-1 flex-col">
      <ChatHeader chat={chat} connection={connection} />
      {failure === null ? null : (
        <p role="alert" className="border-b bg-bad-soft px-4 py-2 text-sm text-bad">
          {failure.message}
        </p>
      )}
      <Conversation chat={chat} send={send} />
      <Composer view={chat.view} send={send} />
    </div>
  );
}

/** Says in the tab's title what the session does, for whoever has many tabs open. */
function useTabTitle(chat: Chat | null): void {
  const view = chat?.view;
  const title = view === undefined ? undefined : (view.title ?? 'Untitled session');
  const mark =
    view?.status === 'running' || view?.status === 'rescheduling'
      ? '● '
      : view !== undefined && waitsFor(view) === 'client'
        ? '(!) '
        : '';
  useEffect(() => {
    if (title !== undefined) document.title = `${mark}${title} · Holdfast`;
  }, [mark, title]);
}

/** Before anything is known of the session: its outline, and why it takes so long. */
function Opening({ isCut }: { isCut: boolean }) {
  return (
    <div role="status" aria-label="Loading" className="flex flex-1 flex-col">
      <div className="h-[4.25rem] border-b bg-panel p-4">
        <div className="h-4 w-56 max-w-full animate-pulse rounded bg-raised" />
        <div className="mt-2 h-3 w-80 max-w-full animate-pulse rounded bg-raised" />
      </div>
      <div className="mx-auto w-full max-w-3xl flex-1 space-y-6 px-4 py-6">
        {isCut ? (
          <p className="flex items-center justify-center gap-2 rounded-lg bg-warn-soft p-3 text-sm text-warn">
            <CloudOff className="size-4" aria-hidden /> The API cannot be reached. Trying again…
          </p>
        ) : null}
        <div className="ml-auto h-10 w-1/2 animate-pulse rounded-2xl bg-raised" />
        <div className="h-4 w-11/12 animate-pulse rounded bg-raised" />
        <div className="h-4 w-4/5 animate-pulse rounded bg-raised" />
        <div className="h-9 w-full animate-pulse rounded-lg bg-raised" />
      </div>
    </div>
  );
}

const fromEnd = (box: HTMLElement): number => box.scrollHeight - box.scrollTop - box.clientHeight;

function Conversation({ chat, send }: { chat: Chat; send: SendEvents }) {
  const area = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  /** Where the end was when it was last gone to. */
  const placed = useRef(0);
  /** The first entry that is drawn; null while the end is followed, when it is the newest few. */
  const [from, setFrom] = useState<number | null>(null);
  const heldFromEnd = useRef<number | null>(null);
  const { view } = chat;
  const { fork } = useFork(view.id);
  const awaited = view.stopReason?.type === 'requires_action' ? view.stopReason.event_ids : [];
  const newest = Math.max(0, chat.items.length - WINDOW);
  const hidden = from ?? newest;

  const toEnd = useCallback(() => {
    const box = area.current;
    if (box === null) return;
    box.scrollTop = box.scrollHeight;
    placed.current = box.scrollTop;
  }, []);
  /** Goes to the end, unless the reader has just left it: the browser tells that only with its next frame. */
  const follow = useCallback(() => {
    const box = area.current;
    if (box !== null && (box.scrollTop >= placed.current - 1 || fromEnd(box) < NEAR_END_PX)) toEnd();
  }, [toEnd]);
  const showEarlier = () => {
    const box = area.current;
    if (box === null || hidden === 0 || heldFromEnd.current !== null) return;
    heldFromEnd.current = box.scrollHeight - box.scrollTop;
    setFrom(Math.max(0, hidden - WINDOW));
  };
  const look = useEffectEvent(() => {
    const box = area.current;
    if (box === null) return;
    atEnd.current = fromEnd(box) < NEAR_END_PX;
    if (atEnd.current) placed.current = box.scrollTop;
    // What is being read stays where it is, however much comes after it.
    setFrom((known) => (atEnd.current ? null : (known ?? newest)));
    if (!atEnd.current && box.scrollTop < NEAR_START_PX) showEarlier();
  });
  // What is put above the reader must not move what is being read.
  // biome-ignore lint/correctness/useExhaustiveDependencies: runs once more is drawn
  useLayoutEffect(() => {
    const box = area.current;
    if (box === null || heldFromEnd.current === null) return;
    box.scrollTop = box.scrollHeight - heldFromEnd.current;
    heldFromEnd.current = null;
  }, [from]);
  // Follows the end while the reader is there, and leaves somebody who reads further up in peace.
  // biome-ignore lint/correctness/useExhaustiveDependencies: runs whenever something was drawn
  useLayoutEffect(() => {
    if (atEnd.current) follow();
  }, [chat, follow]);
  useEffect(() => {
    const box = area.current;
    if (box === null) return undefined;
    const grown = new ResizeObserver(() => (atEnd.current ? follow() : look()));
    grown.observe(box);
    for (const child of box.children) grown.observe(child);
    const onScroll = () => look();
    box.addEventListener('scroll', onScroll);
    return () => {
      grown.disconnect();
      box.removeEventListener('scroll', onScroll);
    };
  }, [follow]);

  return (
    <div className="relative min-h-0 flex-1">
      <div
        ref={area}
        className="h-full overflow-y-auto"
        // Who unfolds something wants to see it, not the end that it pushes down.
        onClickCapture={({ target }) => {
          if (target instanceof Element && target.closest('summary, [data-unfolds]') !== null) atEnd.current = false;
        }}
      >
        <div role="log" aria-label="Conversation" className="mx-auto flex max-w-3xl flex-col gap-4 px-4 py-6">
          {hidden > 0 ? (
            <Button size="small" className="self-center" onClick={showEarlier}>
              {number(hidden)} earlier entries
            </Button>
          ) : null}
          {chat.items.length === 0 && chat.queued.length === 0 && view.status === 'idle' ? (
            <p className="py-16 text-center text-sm text-soft">Nothing was said yet. Write the first message below.</p>
          ) : null}
          {chat.items.slice(hidden).map((item) => (
            <ChatEntry
              key={item.id}
              item={item}
              sessionStatus={item.kind === 'tool' && item.result === null ? view.status : ''}
              awaited={awaited.includes(item.id)}
              send={send}
              onFork={fork}
            />
          ))}
          {chat.thinking === null ? null : <Thinking open text={chat.thinking.text} />}
          {chat.open !== null && chat.open.text !== '' ? (
            <OpenMessage text={chat.open.text} />
          ) : chat.wait !== null ? (
            <Waiting wait={chat.wait} />
          ) : view.status === 'running' ? (
            <Working since={view.runningSince} text="Working" />
          ) : view.status === 'rescheduling' ? (
            <Note text="The model did not answer; the platform tries again by itself" />
          ) : null}
          {chat.queued.map((item) => (
            <div key={item.id} className="opacity-70">
              <ChatEntry item={item} sessionStatus="" awaited={false} send={send} />
              <p className="mt-1 text-right text-xs text-soft">queued</p>
            </div>
          ))}
        </div>
      </div>
      {from === null ? null : (
        <Button
          size="icon"
          className="absolute bottom-4 left-1/2 -translate-x-1/2 rounded-full shadow-md"
          aria-label="Go to the end"
          onClick={() => {
            atEnd.current = true;
            toEnd();
          }}
        >
          <ArrowDown className="size-4" aria-hidden />
        </Button>
      )}
    </div>
  );
}

/** What the model has written so far; drawn as often as there is time for, so that a long answer never holds the page. */
function OpenMessage({ text }: { text: string }) {
  return (
    <article aria-label="agent" aria-busy="true">
      <Markdown text={useDeferredValue(text)} />
      <Working since={null} text="Writing" className="mt-1 h-6" />
    </article>
  );
}
