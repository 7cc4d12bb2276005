'use client';
import { cva, type VariantProps } from 'class-variance-authority';
import { clsx } from 'clsx';
import { AlertTriangle, Check, ChevronDown, Copy, Loader2, SearchX, X } from 'lucide-react';
import Link from 'next/link';
import { Dialog as RadixDialog } from 'radix-ui';
import { type ComponentProps, createContext, type ReactNode, useContext, useEffect, useId, useState } from 'react';
import { toast } from 'sonner';
import { twMerge } from 'tailwind-merge';
import { ApiError, messageOf } from '../lib/api.ts';
import { ago, dateTime, shortId } from '../lib/format.ts';

export const cn = (...classes: Parameters<typeof clsx>): string => twMerge(clsx(...classes));

const button = cva(
  'inline-flex items-center justify-center gap-1.5 rounded-lg text-sm font-medium whitespace-nowrap transition-colors disabled:opacity-50 disabled:cursor-not-allowed',
  {
    variants: {
      look: {
        primary: 'bg-accent text-accent-ink hover:opacity-90',
        plain: 'border bg-panel shadow-xs hover:bg-raised',
        ghost: 'text-soft hover:bg-raised hover:text-ink',
        danger: 'bg-bad text-page hover:opacity-90',
      },
      size: { normal: 'h-9 px-3.5', small: 'h-7 px-2.5 text-xs', icon: 'size-9' },
    },
    defaultVariants: { look: 'plain', size: 'normal' },
  },
);
interface ButtonProps extends ComponentProps<'button'>, VariantProps<typeof button> {
  readonly busy?: boolean;
}
export function Button({
  look,
  size,
  busy = false,
  className,
  children,
  disabled,
  type = 'button',
  ...rest
}: ButtonProps) {
  return (
    <button
      type={type}
      className={cn(button({ look, size }), className)}
      disabled={disabled === true || busy}
      {...rest}
    >
      {busy ? <Loader2 className="size-4 animate-spin" aria-hidden /> : null}
      {children}
    </button>
  );
}
export const buttonClass = (look: 'primary' | 'plain' | 'ghost', size: 'normal' | 'small' = 'normal'): string =>
  button({ look, size });

/** A link that its whole row presses; the row is `relative`, and what else can be pressed in it too. */
export const rowLink =
  'outline-none after:absolute after:inset-0 focus-visible:after:outline-2 focus-visible:after:-outline-offset-2 focus-visible:after:outline-accent';

const field =
  'w-full rounded-lg border border-edge bg-panel px-3 text-sm placeholder:text-soft/80 disabled:opacity-60 aria-invalid:border-bad';
/** Ties a control to the label, hint and error of the field around it. */
const FieldContext = createContext<{ id?: string; 'aria-describedby'?: string; 'aria-invalid'?: true }>({});
export function Input({ className, ...rest }: ComponentProps<'input'>) {
  return <input {...useContext(FieldContext)} className={cn(field, 'h-9', className)} {...rest} />;
}
export function TextArea({ className, ...rest }: ComponentProps<'textarea'>) {
  return <textarea {...useContext(FieldContext)} className={cn(field, 'py-2 leading-relaxed', className)} {...rest} />;
}
export function Select({ className, ...rest }: ComponentProps<'select'>) {
  return (
    <span className={cn('relative block', className)}>
      <select {...useContext(FieldContext)} className={cn(field, 'h-9 appearance-none truncate pr-8')} {...rest} />
      <ChevronDown className="pointer-events-none absolute top-2.5 right-2.5 size-4 text-soft" aria-hidden />
    </span>
  );
}

/** A labelled control with its hint or what is wrong with it. */
export function Field(props: { label: string; hint?: ReactNode; error?: string | undefined; children: ReactNode }) {
  const id = useId();
  const about = `${id}-about`;
  const isExplained = props.error !== undefined || props.hint !== undefined;
  return (
    <FieldContext
      value={{
        id,
        ...(isExplained ? { 'aria-describedby': about } : {}),
        ...(props.error === undefined ? {} : { 'aria-invalid': true }),
      }}
    >
      <div className="space-y-1.5">
        <label htmlFor={id} className="block text-sm font-medium">
          {props.label}
        </label>
        {props.children}
        {props.error !== undefined ? (
          <p id={about} role="alert" className="text-xs text-bad">
            {props.error}
          </p>
        ) : props.hint === undefined ? null : (
          <p id={about} className="text-xs text-soft">
            {props.hint}
          </p>
        )}
      </div>
    </FieldContext>
  );
}

/** What the server said against a form. */
export function FormError({ text }: { text: string }) {
  return (
    <p role="alert" className="rounded-lg bg-bad-soft p-3 text-sm text-bad [overflow-wrap:anywhere]">
      {text}
    </p>
  );
}

const badge = cva('inline-flex items-center gap-1.5 rounded-full px-2 py-0.5 text-xs font-medium', {
  variants: {
    tone: {
      neutral: 'bg-raised text-soft',
      good: 'bg-accent-soft text-accent',
      warn: 'bg-warn-soft text-warn',
      bad: 'bg-bad-soft text-bad',
    },
  },
  defaultVariants: { tone: 'neutral' },
});
export function Badge({ tone, className, ...rest }: ComponentProps<'span'> & VariantProps<typeof badge>) {
  return <span className={cn(badge({ tone }), className)} {...rest} />;
}

/** One of a few views of the same list. */
export function Segmented<T extends string>(props: {
  label: string;
  value: T;
  options: readonly { value: T; text: string; count?: number | undefined; isUrgent?: boolean }[];
  onChange: (value: T) => void;
}) {
  return (
    <div
      role="group"
      aria-label={props.label}
      className="flex max-w-full gap-0.5 overflow-x-auto rounded-lg bg-raised p-0.5"
    >
      {props.options.map(({ value, text, count, isUrgent }) => (
        <button
          key={value}
          type="button"
          aria-pressed={value === props.value}
          onClick={() => props.onChange(value)}
          className="flex h-8 items-center gap-1.5 rounded-md px-2 text-sm sm:px-3 whitespace-nowrap text-soft -outline-offset-2 hover:text-ink aria-pressed:bg-panel aria-pressed:font-medium aria-pressed:text-ink aria-pressed:shadow-xs"
        >
          {text}
          {count === undefined || count === 0 ? null : <Count value={count} isUrgent={isUrgent === true} />}
        </button>
      ))}
    </div>
  );
}

export function Count({ value, isUrgent }: { value: number; isUrgent: boolean }) {
  return (
    <span
      className={cn(
        'min-w-5 rounded-full px-1.5 text-center text-xs leading-5 tabular-nums',
        isUrgent ? 'bg-warn font-semibold text-panel' : 'bg-line/70 text-soft',
      )}
    >
      {value > 999 ? '999+' : value}
    </span>
  );
}

export function PageHeader(props: { title: ReactNode; about?: ReactNode; children?: ReactNode }) {
  return (
    <header className="mb-5">
      <div className="flex flex-wrap items-center justify-between gap-x-6 gap-y-2">
        <h1 className="min-w-0 text-xl font-semibold tracking-tight break-words">{props.title}</h1>
        <div className="flex flex-wrap items-center gap-2">{props.children}</div>
      </div>
      {props.about === undefined ? null : <div className="mt-1 text-sm text-soft">{props.about}</div>}
    </header>
  );
}

export function Panel({ className, ...rest }: ComponentProps<'section'>) {
  return <section className={cn('rounded-xl border bg-panel shadow-xs', className)} {...rest} />;
}

/** Names and what they are, one below the other. */
export function Facts({ children }: { children: ReactNode }) {
  return <dl className="grid grid-cols-[auto_minmax(0,1fr)] gap-x-6 gap-y-1.5 text-sm">{children}</dl>;
}
export function Fact(props: { name: string; children: ReactNode }) {
  return (
    <>
      <dt className="text-soft">{props.name}</dt>
      <dd className="min-w-0 [overflow-wrap:anywhere]">{props.children}</dd>
    </>
  );
}

export function Empty(props: { icon: ReactNode; title: string; children?: ReactNode }) {
  return (
    <div className="flex flex-col items-center gap-2 px-6 py-16 text-center text-balance">
      <div className="mb-2 rounded-full bg-raised p-3.5 text-soft [&>svg]:size-6" aria-hidden>
        {props.icon}
      </div>
      <p className="font-medium">{props.title}</p>
      <div className="max-w-md space-y-4 text-sm text-soft">{props.children}</div>
    </div>
  );
}

/** Why something cannot be shown, and what can be done: try again, or go where there is something. */
export function Failure(props: { error: unknown; onRetry?: () => void; back?: { href: string; text: string } }) {
  const isMissing = props.error instanceof ApiError && props.error.status === 404;
  const Icon = isMissing ? SearchX : AlertTriangle;
  // With a way back it is all that the page has.
  const Title = props.back === undefined ? 'p' : 'h1';
  return (
    <div role="alert" className="flex flex-col items-center gap-3 px-6 py-16 text-center text-balance">
      <div className={cn('rounded-full p-3.5', isMissing ? 'bg-raised text-soft' : 'bg-bad-soft text-bad')}>
        <Icon className="size-6" aria-hidden />
      </div>
      <Title className="max-w-lg text-sm [overflow-wrap:anywhere]">{messageOf(props.error)}</Title>
      <div className="flex gap-2">
        {props.back === undefined ? null : (
          <Link className={buttonClass('plain')} href={props.back.href}>
            {props.back.text}
          </Link>
        )}
        {props.onRetry === undefined || isMissing ? null : <Button onClick={props.onRetry}>Try again</Button>}
      </div>
    </div>
  );
}

export function Loading(props: { rows?: number }) {
  return (
    <div role="status" aria-label="Loading" className="space-y-3 p-4">
      {Array.from({ length: props.rows ?? 5 }, (_, i) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: they are all alike
        <div key={i} className="h-9 animate-pulse rounded-lg bg-raised" />
      ))}
    </div>
  );
}

/** The time now, again and again, for what is told relative to it. */
export function useNow(everyMs: number): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export function Time(props: { at: string }) {
  const now = useNow(5_000);
  return (
    <time dateTime={props.at} title={dateTime(props.at)} className="whitespace-nowrap" suppressHydrationWarning>
      {ago(props.at, now)}
    </time>
  );
}

/** Copies a text, and says so in its place. */
export function CopyButton({
  text,
  label,
  className,
}: {
  text: string | (() => string);
  label: string;
  className?: string;
}) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), 1_500);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === 'string' ? text : text());
      setCopied(true);
    } catch {
      // Browsers have a clipboard for https and localhost only.
      toast.error('The browser lets this page copy nothing; select the text instead.');
    }
  };
  return (
    <button
      type="button"
      aria-label={copied ? 'Copied' : label}
      title={label}
      onClick={() => void copy()}
      className={cn(
        'inline-flex size-6 items-center justify-center rounded-md text-soft hover:bg-raised hover:text-ink',
        className,
      )}
    >
      {copied ? <Check className="size-3.5 text-accent" aria-hidden /> : <Copy className="size-3.5" aria-hidden />}
    </button>
  );
}

/** What scrolls must be reached without a mouse. */
const reachable = { tabIndex: 0 };
/** Text as it is. */
export function Verbatim(props: ComponentProps<'pre'>) {
  return <pre {...reachable} {...props} />;
}

/** An id, cut to what tells it apart; copied whole. */
export function Id({ id, className }: { id: string; className?: string }) {
  return (
    <span className={cn('inline-flex items-center gap-0.5 font-mono text-xs text-soft', className)}>
      <span title={id}>{shortId(id)}</span>
      <CopyButton text={id} label={`Copy ${id}`} />
    </span>
  );
}

/** Closes by its button or Escape; a click beside it would lose what was typed. */
export function Modal(props: {
  open: boolean;
  onClose: () => void;
  title: string;
  about?: ReactNode;
  role?: 'alertdialog';
  className?: string;
  children: ReactNode;
}) {
  return (
    <RadixDialog.Root open={props.open} onOpenChange={(open) => (open ? undefined : props.onClose())}>
      <RadixDialog.Portal>
        <RadixDialog.Overlay className="fixed inset-0 z-40 bg-black/50" />
        <RadixDialog.Content
          {...(props.about === undefined ? { 'aria-describedby': undefined } : {})}
          {...(props.role === undefined ? {} : { role: props.role })}
          onInteractOutside={(event) => event.preventDefault()}
          className={cn(
            'fixed top-1/2 left-1/2 z-50 max-h-[90dvh] w-[min(34rem,calc(100vw-2rem))] -translate-x-1/2 -translate-y-1/2 overflow-y-auto rounded-xl border bg-panel p-5 shadow-xl',
            props.className,
          )}
        >
          <RadixDialog.Title className="pr-8 text-base font-semibold [overflow-wrap:anywhere]">
            {props.title}
          </RadixDialog.Title>
          {props.about === undefined ? null : (
            <RadixDialog.Description className="mt-1 text-sm text-soft">{props.about}</RadixDialog.Description>
          )}
          <div className="mt-4">{props.children}</div>
          {/* Last, so that the keyboard begins with what the dialog is for. */}
          <RadixDialog.Close
            aria-label="Close"
            className="absolute top-3.5 right-3.5 rounded-lg p-1.5 text-soft hover:bg-raised hover:text-ink"
          >
            <X className="size-4" aria-hidden />
          </RadixDialog.Close>
        </RadixDialog.Content>
      </RadixDialog.Portal>
    </RadixDialog.Root>
  );
}

/** Asks before something that cannot be taken back. */
export function Confirm(props: {
  open: boolean;
  title: string;
  about: ReactNode;
  action: string;
  busy: boolean;
  onConfirm: () => void;
  onClose: () => void;
}) {
  return (
    <Modal role="alertdialog" open={props.open} onClose={props.onClose} title={props.title} about={props.about}>
      <div className="flex justify-end gap-2">
        <Button onClick={props.onClose}>Cancel</Button>
        <Button look="danger" busy={props.busy} onClick={props.onConfirm}>
          {props.action}
        </Button>
      </div>
    </Modal>
  );
}
