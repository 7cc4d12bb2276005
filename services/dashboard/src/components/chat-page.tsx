'use client';
import type { Chat } from '@holdfast/contracts';
import { ArrowDown, List, MoreHorizontal, Square } from 'lucide-react';
import Link from 'next/link';
import { useRouter } from 'next/navigation';
import { DropdownMenu } from 'radix-ui';
import { useCallback, useEffect, useLayoutEffect, useRef, useState, useSyncExternalStore } from 'react';
import { toast } from 'sonner';
import { api, apiPersistent, messageOf } from '../lib/api.ts';
import { number } from '../lib/format.ts';
import { type Connection, SessionStream } from '../lib/session-stream.ts';
import { ChatEntry, Note, type SendEvents } from './chat-items.tsx';
import { Composer } from './composer.tsx';
import { Markdown } from './markdown.tsx';
import { StatusBadge } from './status-badge.tsx';
import { Button, buttonClass, Confirm, Failure, Loading } from './ui.tsx';

/** So many entries are drawn at once; earlier ones on demand, so that the longest session stays quick. */
const WINDOW = 150;

export function ChatPage({ id }: { id: string }) {
  const [stream] = useState(() => new SessionStream(id));
  const { chat, connection, failure } = useSyncExternalStore(stream.subscribe, stream.snapshot, stream.snapshot);
  const send = useCallback<SendEvents>(
    async (events) => {
      try {
        await apiPersistent(`/v1/sessions/${id}/events`, { events }, crypto.randomUUID());
      } catch (error) {
        toast.error(messageOf(error));
        throw error;
      }
    },
    [id],
  );
  if (failure !== null && chat === null) return <Failure error={failure} onRetry={() => location.reload()} />;
  if (chat === null) return <Loading rows={8} />;
  if (chat.view.deleted) return <Failure error={new Error('This session was deleted.')} />;
  return (
    <div className="flex min-h-0 flex-1 flex-col">
      <Header chat={chat} connection={connection} send={send} />
      {failure === null ? null : (
        <p role="alert" className="border-b bg-bad-soft px-4 py-2 text-sm text-bad">
          {failure.message}
        </p>
      )}
      <Conversation chat={chat} send={send} />
      <Composer
        sessionId={id}
        running={chat.view.status === 'running' || chat.view.status === 'rescheduling'}
        archived={chat.view.archivedAt !== null}
        send={send}
      />
    </div>
  );
}

function Header({ chat, connection, send }: { chat: Chat; connection: Connection; send: SendEvents }) {
  const { view } = chat;
  const router = useRouter();
  const [asking, setAsking] = useState<'archive' | 'delete' | null>(null);
  const [busy, setBusy] = useState(false);
  const running = view.status === 'running' || view.status === 'rescheduling';
  const interrupt = useCallback(() => void send([{ type: 'user.interrupt' }]).catch(() => undefined), [send]);
  const act = async () => {
    setBusy(true);
    try {
      if (asking === 'delete') {
        await api(`/v1/sessions/${view.id}`, { method: 'DELETE' });
        router.push('/sessions');
      } else await api(`/v1/sessions/${view.id}/archive`, { method: 'POST' });
      setAsking(null);
    } catch (error) {
      toast.error(messageOf(error));
    } finally {
      setBusy(false);
    }
  };
  const usage = view.usage;
  return (
    <header className="flex items-center gap-3 border-b bg-panel px-4 py-2.5">
      <div className="min-w-0 flex-1">
        <h1 className="truncate font-semibold">{view.title ?? 'Untitled session'}</h1>
        <p className="truncate text-xs text-soft">
          <Link className="hover:underline" href={`/agents/${view.agent.id}`}>
            {view.agent.name} v{view.agent.version}
          </Link>{' '}
          · {view.agent.model.id} · {number(usage.input_tokens)} in, {number(usage.output_tokens)} out
          {usage.x_cost_usd === undefined ? '' : ` · $${usage.x_cost_usd.toFixed(4)}`}
        </p>
      </div>
      <span role="status" className="flex items-center gap-2">
        {connection === 'reconnecting' || connection === 'connecting' ? (
          <span className="text-xs text-warn">{connection === 'connecting' ? 'Connecting…' : 'Reconnecting…'}</span>
        ) : null}
        <StatusBadge status={view.status} needsYou={view.stopReason?.type === 'requires_action'} />
      </span>
      {running ? (
        <Button size="small" onClick={interrupt}>
          <Square className="size-3 fill-current" aria-hidden /> Interrupt
        </Button>
      ) : null}
      <Link className={buttonClass('ghost', 'small')} href={`/sessions/${view.id}/timeline`}>
        <List className="size-4" aria-hidden /> <span className="hidden sm:inline">Timeline</span>
      </Link>
      <DropdownMenu.Root>
        <DropdownMenu.Trigger asChild>
          <Button size="icon" look="ghost" aria-label="More actions">
            <MoreHorizontal className="size-4" aria-hidden />
          </Button>
        </DropdownMenu.Trigger>
        <DropdownMenu.Portal>
          <DropdownMenu.Content
            align="end"
            sideOffset={4}
            className="z-30 min-w-40 rounded-lg border bg-panel p-1 text-sm shadow-lg"
          >
            <Action onSelect={() => setAsking('archive')} disabled={view.archivedAt !== null || running}>
              Archive
            </Action>
            <Action onSelect={() => setAsking('delete')} disabled={running}>
              Delete
            </Action>
          </DropdownMenu.Content>
        </DropdownMenu.Portal>
      </DropdownMenu.Root>
      <Confirm
        open={asking !== null}
        title={asking === 'delete' ? 'Delete this session?' : 'Archive this session?'}
        about={
          asking === 'delete'
            ? 'Its sandbox and files are removed and it leaves every list. This cannot be undone.'
            : 'It takes no more messages; its events stay readable. Its sandbox is removed. This cannot be undone.'
        }
        action={asking === 'delete' ? 'Delete' : 'Archive'}
        busy={busy}
        onConfirm={() => void act()}
        onClose={() => setAsking(null)}
      />
    </header>
  );
}

function Action(props: { onSelect: () => void; disabled: boolean; children: string }) {
  return (
    <DropdownMenu.Item
      className="rounded-md px-2.5 py-1.5 outline-none data-[disabled]:opacity-50 data-[highlighted]:bg-raised"
      onSelect={props.onSelect}
      disabled={props.disabled}
    >
      {props.children}
    </DropdownMenu.Item>
  );
}

function Conversation({ chat, send }: { chat: Chat; send: SendEvents }) {
  const area = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const [away, setAway] = useState(false);
  const [drawn, setDrawn] = useState(WINDOW);
  const { view } = chat;
  const awaited = view.stopReason?.type === 'requires_action' ? view.stopReason.event_ids : [];
  const hidden = Math.max(0, chat.items.length - drawn);

  const toEnd = useCallback(() => {
    const box = area.current;
    if (box !== null) box.scrollTop = box.scrollHeight;
  }, []);
  // Follows the end while the reader is there, and leaves somebody who reads further up in peace.
  // biome-ignore lint/correctness/useExhaustiveDependencies: runs whenever something was drawn
  useLayoutEffect(() => {
    if (atEnd.current) toEnd();
  }, [chat, toEnd]);
  useEffect(() => {
    const box = area.current;
    if (box === null) return undefined;
    const grown = new ResizeObserver(() => atEnd.current && toEnd());
    for (const child of box.children) grown.observe(child);
    return () => grown.disconnect();
  }, [toEnd]);

  const showEarlier = () => {
    const box = area.current;
    const fromEnd = box === null ? 0 : box.scrollHeight - box.scrollTop;
    setDrawn(drawn + WINDOW);
    requestAnimationFrame(() => {
      if (box !== null) box.scrollTop = box.scrollHeight - fromEnd;
    });
  };

  return (
    <div className="relative min-h-0 flex-1">
      <div
        ref={area}
        className="h-full overflow-y-auto"
        onScroll={({ currentTarget: box }) => {
          atEnd.current = box.scrollHeight - box.scrollTop - box.clientHeight < 48;
          setAway(!atEnd.current);
        }}
      >
        <div role="log" aria-label="Conversation" className="mx-auto flex max-w-3xl flex-col gap-4 px-4 py-6">
          {hidden > 0 ? (
            <Button size="small" className="self-center" onClick={showEarlier}>
              Show {number(Math.min(WINDOW, hidden))} of {number(hidden)} earlier entries
            </Button>
          ) : null}
          {chat.items.length === 0 && chat.queued.length === 0 ? (
            <p className="py-16 text-center text-sm text-soft">Nothing was said yet. Write the first message below.</p>
          ) : null}
          {chat.items.slice(hidden).map((item) => (
            <ChatEntry
              key={item.id}
              item={item}
              sessionStatus={item.kind === 'tool' && item.result === null ? view.status : ''}
              awaited={awaited.includes(item.id)}
              send={send}
            />
          ))}
          {chat.open !== null && chat.open.text !== '' ? (
            <article aria-label="agent" aria-busy="true">
              <Markdown text={chat.open.text} />
            </article>
          ) : view.status === 'running' ? (
            <p className="flex items-center gap-2 text-sm text-soft">
              <span className="size-2 animate-pulse rounded-full bg-accent" aria-hidden /> Working…
            </p>
          ) : view.status === 'rescheduling' ? (
            <Note text="The model did not answer; the platform tries again by itself" />
          ) : null}
          {chat.queued.map((item) => (
            <div key={item.id} className="opacity-60">
              <ChatEntry item={item} sessionStatus="" awaited={false} send={send} />
              <p className="mt-1 text-right text-[11px] text-soft">queued</p>
            </div>
          ))}
        </div>
      </div>
      {away ? (
        <Button
          size="icon"
          className="absolute right-6 bottom-4 rounded-full shadow"
          aria-label="Go to the end"
          onClick={toEnd}
        >
          <ArrowDown className="size-4" aria-hidden />
        </Button>
      ) : null}
    </div>
  );
}
