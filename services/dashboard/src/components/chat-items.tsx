'use client';
import type { ChatItem, ContentBlock, ToolItem } from '@holdfast/contracts';
import { AlertTriangle, Ban, Check, ChevronRight, CircleDashed, Clock, FileText, Loader2, X } from 'lucide-react';
import { memo, useId, useState } from 'react';
import { bytes, timeOfDay } from '../lib/format.ts';
import { Markdown } from './markdown.tsx';
import { Button, cn, Input, TextArea } from './ui.tsx';

export type SendEvents = (events: readonly object[]) => Promise<void>;
/** Longer texts begin folded, so that one paste does not fill the page. */
const LONG_CHARS = 6_000;

export const ChatEntry = memo(function ChatEntry(props: {
  item: ChatItem;
  sessionStatus: string;
  /** The platform waits for the client's word about this call. */
  awaited: boolean;
  send: SendEvents;
}) {
  const { item } = props;
  switch (item.kind) {
    case 'message':
      return <Message item={item} />;
    case 'tool':
      return <Tool item={item} awaited={props.awaited} running={props.sessionStatus === 'running'} send={props.send} />;
    case 'error':
      return (
        <div role="alert" className="flex gap-3 rounded-lg bg-bad-soft p-3 text-sm text-bad">
          <AlertTriangle className="mt-0.5 size-4 shrink-0" aria-hidden />
          <div className="min-w-0">
            <p className="break-words">{item.error.message}</p>
            <p className="mt-0.5 text-xs opacity-80">
              {item.error.type.replaceAll('_', ' ')}
              {item.error.retry_status.type === 'retrying' ? ' · trying again' : ''}
            </p>
          </div>
        </div>
      );
    case 'note':
      return <Note text={NOTES[item.note]} />;
  }
});

const NOTES = {
  interrupted: 'Interrupted',
  compacted: 'The conversation so far was summarised for the model; nothing is lost here',
  archived: 'The session was archived',
};

export function Note({ text }: { text: string }) {
  return (
    <p className="flex items-center gap-3 text-xs text-soft before:h-px before:flex-1 before:bg-line after:h-px after:flex-1 after:bg-line">
      {text}
    </p>
  );
}

function Message({ item }: { item: Extract<ChatItem, { kind: 'message' }> }) {
  const mine = item.from !== 'agent';
  return (
    <article aria-label={item.from} className={cn('group/message flex flex-col', mine && 'items-end')}>
      <div
        className={cn('min-w-0', mine ? 'max-w-[85%] rounded-2xl rounded-br-md bg-accent-soft px-4 py-2.5' : 'w-full')}
      >
        {item.from === 'system' ? <p className="mb-1 text-xs font-medium text-soft">System message</p> : null}
        {item.content.map((block, i) => (
          // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a message never change
          <Block key={i} block={block} plain={mine} />
        ))}
      </div>
      {item.at === null ? null : (
        <time
          dateTime={item.at}
          className="mt-1 text-[11px] text-soft opacity-0 transition-opacity group-hover/message:opacity-100"
        >
          {timeOfDay(item.at)}
        </time>
      )}
    </article>
  );
}

function Block({ block, plain }: { block: ContentBlock; plain: boolean }) {
  if (block.type === 'text') {
    if (block.text.length > LONG_CHARS) return <LongText text={block.text} />;
    return plain ? <p className="break-words whitespace-pre-wrap">{block.text}</p> : <Markdown text={block.text} />;
  }
  const { source } = block;
  if (block.type === 'image' && source.type === 'base64' && /^image\/(png|jpeg|gif|webp)$/.test(source.media_type)) {
    return (
      <img
        src={`data:${source.media_type};base64,${source.data}`}
        alt="attached"
        className="my-1 max-h-80 max-w-full rounded-lg"
      />
    );
  }
  const about =
    source.type === 'url' ? source.url : source.type === 'file' ? source.file_id : bytes(source.data.length);
  return (
    <p className="my-1 flex items-center gap-2 rounded-lg bg-raised px-3 py-2 text-sm">
      <FileText className="size-4 shrink-0 text-soft" aria-hidden />
      <span className="truncate">
        {block.type === 'document' ? (block.title ?? 'Document') : 'Image'} · {about}
      </span>
    </p>
  );
}

function LongText({ text }: { text: string }) {
  const [open, setOpen] = useState(false);
  return (
    <div>
      <pre className="font-sans break-words whitespace-pre-wrap">{open ? text : `${text.slice(0, 1_500)}…`}</pre>
      <Button size="small" className="mt-2" onClick={() => setOpen(!open)}>
        {open ? 'Fold' : `Show all ${bytes(text.length)}`}
      </Button>
    </div>
  );
}

/** What a call is about, in one line. */
function summary(item: ToolItem): string {
  const { input } = item;
  const first = [input['command'], input['file_path'], input['path'], input['pattern'], input['url']].find(
    (value) => typeof value === 'string',
  );
  return typeof first === 'string' ? first : JSON.stringify(input);
}

function Tool(props: { item: ToolItem; awaited: boolean; running: boolean; send: SendEvents }) {
  const { item, awaited } = props;
  const asks = awaited && !item.custom && item.result === null && item.confirmed === null;
  const asksResult = awaited && item.custom && item.result === null;
  return (
    <div className={cn('overflow-hidden rounded-lg border bg-panel text-sm', (asks || asksResult) && 'border-warn')}>
      <details className="group/tool" open={asks || asksResult ? true : undefined}>
        <summary className="flex items-center gap-2.5 px-3 py-2 hover:bg-raised/60">
          <ChevronRight
            className="size-4 shrink-0 text-soft transition-transform group-open/tool:rotate-90"
            aria-hidden
          />
          <ToolState item={item} waits={asks || asksResult} running={props.running} />
          <code className="font-mono text-xs font-semibold">{item.name}</code>
          <span className="min-w-0 flex-1 truncate font-mono text-xs text-soft">{summary(item)}</span>
        </summary>
        <div className="border-t">
          <Output title="Input" text={inputText(item)} />
          {item.result === null ? null : (
            <div className={cn('border-t', item.result.isError && 'bg-bad-soft')}>
              {item.result.content.length === 0 ? <p className="px-3 py-2 text-xs text-soft">No output</p> : null}
              {item.result.content.map((block, i) =>
                block.type === 'text' ? (
                  // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a result never change
                  <Output key={i} title={item.result?.isError === true ? 'Error' : 'Output'} text={block.text} />
                ) : (
                  // biome-ignore lint/suspicious/noArrayIndexKey: the blocks of a result never change
                  <div key={i} className="px-3 py-2">
                    <Block block={block} plain />
                  </div>
                ),
              )}
            </div>
          )}
        </div>
      </details>
      {asks ? <Approval id={item.id} name={item.name} send={props.send} /> : null}
      {asksResult ? <CustomResult id={item.id} name={item.name} send={props.send} /> : null}
    </div>
  );
}

function ToolState({ item, waits, running }: { item: ToolItem; waits: boolean; running: boolean }) {
  if (item.result?.isError === true)
    return item.confirmed === 'deny' ? (
      <Ban className="size-4 text-bad" aria-label="denied" />
    ) : (
      <X className="size-4 text-bad" aria-label="failed" />
    );
  if (item.result !== null) return <Check className="size-4 text-accent" aria-label="done" />;
  if (waits) return <Clock className="size-4 text-warn" aria-label="waits for you" />;
  if (running) return <Loader2 className="size-4 animate-spin text-soft" aria-label="running" />;
  return <CircleDashed className="size-4 text-soft" aria-label="not finished" />;
}

function inputText(item: ToolItem): string {
  const { command, ...rest } = item.input;
  if (typeof command === 'string' && Object.keys(rest).length === 0) return command;
  return Object.entries(item.input)
    .map(([name, value]) => `${name}: ${typeof value === 'string' ? value : JSON.stringify(value, null, 2)}`)
    .join('\n');
}

function Output({ title, text }: { title: string; text: string }) {
  return (
    <div className="px-3 py-2">
      <p className="mb-1 text-[11px] font-medium tracking-wide text-soft uppercase">{title}</p>
      <pre className="max-h-80 overflow-auto font-mono text-xs leading-relaxed break-words whitespace-pre-wrap">
        {text}
      </pre>
    </div>
  );
}

function Approval(props: { id: string; name: string; send: SendEvents }) {
  const [busy, setBusy] = useState(false);
  const [reason, setReason] = useState('');
  const answer = async (result: 'allow' | 'deny') => {
    setBusy(true);
    try {
      await props.send([
        {
          type: 'user.tool_confirmation',
          tool_use_id: props.id,
          result,
          ...(result === 'deny' && reason.trim() !== '' ? { deny_message: reason.trim() } : {}),
        },
      ]);
    } catch {
      setBusy(false);
    }
  };
  return (
    <div className="flex flex-wrap items-center gap-2 border-t bg-warn-soft px-3 py-2.5">
      <span className="text-sm text-warn">Allow this call?</span>
      <Input
        aria-label={`Why ${props.name} is denied`}
        placeholder="Reason, if you deny it"
        className="h-7 min-w-40 flex-1 text-xs"
        maxLength={4096}
        value={reason}
        onChange={(event) => setReason(event.target.value)}
      />
      <Button size="small" disabled={busy} onClick={() => void answer('deny')}>
        Deny
      </Button>
      <Button size="small" look="primary" busy={busy} onClick={() => void answer('allow')}>
        Allow
      </Button>
    </div>
  );
}

function CustomResult(props: { id: string; name: string; send: SendEvents }) {
  const [busy, setBusy] = useState(false);
  const [text, setText] = useState('');
  const [isError, setIsError] = useState(false);
  const id = useId();
  const answer = async () => {
    setBusy(true);
    try {
      await props.send([
        {
          type: 'user.custom_tool_result',
          custom_tool_use_id: props.id,
          content: text === '' ? [] : [{ type: 'text', text }],
          ...(isError ? { is_error: true } : {}),
        },
      ]);
    } catch {
      setBusy(false);
    }
  };
  return (
    <div className="space-y-2 border-t bg-warn-soft px-3 py-2.5">
      <label htmlFor={id} className="block text-sm text-warn">
        {props.name} is a tool of the client. Its result:
      </label>
      <TextArea
        id={id}
        rows={3}
        className="font-mono text-xs"
        value={text}
        onChange={(event) => setText(event.target.value)}
      />
      <div className="flex items-center justify-between">
        <label className="flex items-center gap-2 text-xs">
          <input type="checkbox" checked={isError} onChange={(event) => setIsError(event.target.checked)} /> It failed
        </label>
        <Button size="small" look="primary" busy={busy} onClick={() => void answer()}>
          Send the result
        </Button>
      </div>
    </div>
  );
}
